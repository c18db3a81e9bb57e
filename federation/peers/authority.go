package peers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	joinpb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/api/rpc/joinrpc"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/mesh"
)

// Leave ends this cluster's membership: at the authority first, then here. If the authority cannot be reached nothing
// changes.
func (c *Core) Leave(ctx context.Context) (burntUntil time.Time, err error) {
	return c.membership.Leave(ctx, c.goodbye)
}

// authority opens a connection to the authority's services for members.
func (c *Core) authority() (*grpc.ClientConn, error) {
	trust := c.membership.Trust()
	if trust == nil {
		return nil, errors.New("this cluster is in no federation")
	}
	for _, member := range trust.Members {
		if !member.Authority {
			continue
		}
		options := append(wire.ClientOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()), // TLS is below, in the tunnel
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return c.dialer.Dial(ctx, member.Name, mesh.ALPNSync)
			}))
		return grpc.NewClient("passthrough:///"+string(member.Name), options...)
	}
	return nil, errors.New("the federation document names no authority")
}

// renew asks the authority for a new intermediate.
func (c *Core) renew(ctx context.Context, csr []byte) ([][]byte, error) {
	conn, err := c.authority()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	answer, err := joinrpc.NewMembershipClient(conn).Renew(ctx, &joinpb.RenewRequest{Csr: csr})
	if err != nil {
		return nil, fmt.Errorf("renew this cluster's intermediate at the authority: %w", err)
	}
	return answer.GetChain(), nil
}

// goodbye tells the authority that this cluster leaves.
func (c *Core) goodbye(ctx context.Context) (burntUntil time.Time, err error) {
	conn, err := c.authority()
	if err != nil {
		return time.Time{}, err
	}
	defer func() { _ = conn.Close() }()
	answer, err := joinrpc.NewMembershipClient(conn).Leave(ctx, &joinpb.LeaveRequest{})
	if err != nil || answer.GetBurntUntilUnix() == 0 {
		return time.Time{}, err
	}
	return time.Unix(answer.GetBurntUntilUnix(), 0).UTC(), nil
}

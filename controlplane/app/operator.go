package app

import (
	"context"
	"fmt"
	"time"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/controlplane/admin"
	"isthmus.dev/isthmus/federation/gossip"
	"isthmus.dev/isthmus/federation/join"
	"isthmus.dev/isthmus/federation/membership"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/version"
	"isthmus.dev/isthmus/mesh"
)

// adminSocket is what the command line speaks to.
const adminSocket = "admin.sock"

// operator answers what a person asks about the federation. It implements admin.Federation.
type operator struct {
	*controlPlane
	server *admin.Server
}

var _ admin.Federation = (*operator)(nil)

func (cp *controlPlane) newOperator(r *registry, w *workloads) (*operator, error) {
	o := &operator{controlPlane: cp}
	o.server = admin.New(admin.Config{
		Socket: cp.config.socket(adminSocket), Logger: cp.log, Registry: cp.store, Snapshot: cp.world.Snapshot,
		Federation: o, Workloads: w, WorkloadSocket: cp.config.socket(workloadSocket), Proxies: w.proxies,
		Inspect: w.inspector.Ask, Reckon: cp.peers.Reckon, Folded: cp.world.Folded, Plan: w.xds.Plan,
		Checks: func(context.Context) []*adminpb.Check {
			return append([]*adminpb.Check{r.checkDisk(), w.checkLedger(), checkApplications(cp.world.Snapshot().Workloads, w.health.All()),
				checkAddresses(cp.allocated.Without())}, checkPeers(cp.peers)...)
		},
	})
	return o, nil
}

func (o *operator) run(ctx context.Context) error { return o.server.Run(ctx) }

// Status says who this control plane is.
func (o *operator) Status(context.Context, *adminpb.StatusRequest) (*adminpb.StatusResponse, error) {
	snapshot := o.world.Snapshot()
	status := &adminpb.StatusResponse{
		Ready: snapshot.Ready && snapshot.Trust != nil, Version: version.String(),
		WorkloadSocket: o.config.socket(workloadSocket),
	}
	trust := o.membership.Trust()
	if trust == nil {
		return status, nil
	}
	status.Cluster, status.Federation, status.Role = string(trust.Self), string(trust.Federation), "member"
	status.DocumentTerm, status.DocumentSeq = trust.Term, trust.Seq
	if until := o.membership.BurntIfLeft(); !until.IsZero() {
		status.LeaveBurnsUntilUnix = until.Unix()
	}
	if self, ok := trust.Member(trust.Self); ok {
		status.Role, status.Region, status.Gateways = role(self), self.Region, addresses(self)
	}
	return status, nil
}

// Init founds a federation.
func (o *operator) Init(_ context.Context, r *adminpb.InitRequest) (*adminpb.InitResponse, error) {
	founded, err := o.membership.Found(membership.FoundRequest{
		Cluster: mesh.ClusterName(r.GetCluster()), Federation: mesh.FederationName(r.GetFederation()),
		Region: r.GetRegion(), Gateways: r.GetGateways(), Passphrase: r.GetPassphrase(),
	})
	if err != nil {
		return nil, err
	}
	return &adminpb.InitResponse{RecoveryFile: founded.RecoveryFile, Passphrase: founded.Passphrase, Phases: phases(founded.Phases)}, nil
}

// CreateToken makes a token for one more cluster. Without namespaces it may export all.
func (o *operator) CreateToken(_ context.Context, r *adminpb.CreateTokenRequest) (*adminpb.CreateTokenResponse, error) {
	namespaces := r.GetNamespaces()
	if len(namespaces) == 0 {
		namespaces = []string{"*"}
	}
	token, expires, err := o.membership.CreateToken(join.Grant{
		Cluster: mesh.ClusterName(r.GetCluster()), Namespaces: namespaces, Life: time.Duration(r.GetTtlSeconds()) * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return &adminpb.CreateTokenResponse{Token: token, Cluster: r.GetCluster(), ExpiresUnix: expires.Unix()}, nil
}

// ListTokens lists the tokens of the authority.
func (o *operator) ListTokens(context.Context, *adminpb.ListTokensRequest) (*adminpb.ListTokensResponse, error) {
	out := &adminpb.ListTokensResponse{}
	for _, t := range o.membership.Tokens().List() {
		out.Tokens = append(out.Tokens, &adminpb.TokenInfo{
			Id: t.ID, Cluster: string(t.Cluster), Namespaces: t.Namespaces, ExpiresUnix: t.Expires.Unix(), State: t.State,
		})
	}
	return out, nil
}

// RevokeToken ends open tokens by id or cluster.
func (o *operator) RevokeToken(_ context.Context, r *adminpb.RevokeTokenRequest) (*adminpb.RevokeTokenResponse, error) {
	n, err := o.membership.Tokens().Revoke(r.GetId())
	return &adminpb.RevokeTokenResponse{Revoked: int32(n)}, err
}

// Join redeems a token and returns when proxies can be served.
func (o *operator) Join(ctx context.Context, r *adminpb.JoinRequest) (*adminpb.JoinResponse, error) {
	start := time.Now()
	result, err := o.membership.Join(ctx, membership.JoinRequest{
		Token: r.GetToken(), Cluster: mesh.ClusterName(r.GetExpectCluster()), Region: r.GetRegion(), Gateways: r.GetGateways(),
	})
	if err != nil {
		return nil, err
	}
	out := phases(result.Phases)
	synced := time.Now()
	if err := o.serving(ctx); err != nil {
		return nil, err
	}
	out = append(out, &adminpb.Phase{Name: "serve", Ms: milliseconds(time.Since(synced))})
	return &adminpb.JoinResponse{
		Cluster: string(result.Cluster), Federation: string(result.Federation), Phases: out, TotalMs: milliseconds(time.Since(start)),
	}, nil
}

// serving waits until the new membership has reached the state that proxies are served from.
func (o *operator) serving(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for range o.world.Watch(ctx) {
		if s := o.world.Snapshot(); s.Ready && s.Trust != nil {
			return nil
		}
	}
	return hint.Code(fmt.Errorf("joined, but the state is not complete yet: %w", ctx.Err()), "timeout")
}

// Leave ends this cluster's membership.
func (o *operator) Leave(ctx context.Context, _ *adminpb.LeaveRequest) (*adminpb.LeaveResponse, error) {
	until, err := o.peers.Leave(ctx)
	if err != nil {
		return nil, err
	}
	return &adminpb.LeaveResponse{BurntUntilUnix: until.Unix()}, nil
}

// ListClusters lists the members in the order of their admission: the document says who belongs, streams and gossip
// say who lives.
func (o *operator) ListClusters(context.Context, *adminpb.ListClustersRequest) (*adminpb.ListClustersResponse, error) {
	trust := o.membership.Trust()
	if trust == nil {
		return &adminpb.ListClustersResponse{}, nil
	}
	heard := map[mesh.ClusterName]gossip.Peer{}
	for _, p := range o.peers.Members() {
		heard[p.Name] = p
	}
	out := &adminpb.ListClustersResponse{}
	for i := range trust.Members {
		m := &trust.Members[i]
		c := &adminpb.Cluster{
			Name: string(m.Name), Role: role(m), Region: m.Region, Gateways: addresses(m), Self: m.Name == trust.Self,
			State: string(gossip.Ready), DocumentSeq: trust.Seq,
		}
		if p, ok := heard[m.Name]; ok && !c.Self {
			c.State, c.RoundTripMs, c.DocumentSeq = string(p.State), milliseconds(p.RoundTrip), p.Said.Seq
			if !p.LastSeen.IsZero() {
				c.LastSeenSeconds = time.Since(p.LastSeen).Seconds()
			}
		}
		out.Clusters = append(out.Clusters, c)
	}
	return out, nil
}

func role(m *mesh.Member) string {
	if m.Authority {
		return "authority"
	}
	return "member"
}

func addresses(m *mesh.Member) []string {
	var out []string
	for _, g := range m.Gateways {
		out = append(out, g.Address.String())
	}
	return out
}

func phases(all []join.Phase) []*adminpb.Phase {
	var out []*adminpb.Phase
	for _, p := range all {
		out = append(out, &adminpb.Phase{Name: p.Name, Ms: milliseconds(p.Took)})
	}
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

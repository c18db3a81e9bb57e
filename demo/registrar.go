package demo

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/demo/supervisor"
	"isthmus.dev/isthmus/internal/hint/wire"
)

// adminRegistrar registers workloads by the admin API, as `isthmus workload run` does.
type adminRegistrar struct{}

// dialAdmin connects to an admin socket of the demo, whose paths are short. The
// connection is made with the first request.
func dialAdmin(socket string) (*grpc.ClientConn, error) {
	options := append(wire.ClientOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("isthmus"))
	conn, err := grpc.NewClient("unix:"+socket, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to the control plane at %s: %w", socket, err)
	}
	return conn, nil
}

// Register implements supervisor.Registrar.
func (adminRegistrar) Register(ctx context.Context, socket string, w supervisor.Workload) ([]byte, error) {
	conn, err := dialAdmin(socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	reply, err := adminrpc.NewMeshClient(conn).RegisterWorkload(ctx, registration(w))
	if err != nil {
		return nil, err
	}
	return reply.GetToken(), nil
}

func registration(w supervisor.Workload) *admin.RegisterWorkloadRequest {
	r := &admin.RegisterWorkloadRequest{
		Kind: string(w.Kind), Namespace: w.Namespace, Name: w.Name, ServiceAccount: w.Account,
		Address: w.Address, Zone: w.Zone, Labels: w.Labels, Service: w.Service, Export: w.Export, TokenOnly: w.Known,
	}
	for _, p := range w.Ports {
		r.Ports = append(r.Ports, &admin.WorkloadPort{Name: p.Name, Number: uint32(p.Number), Protocol: p.Protocol})
	}
	return r
}

// Deregister implements supervisor.Registrar.
func (adminRegistrar) Deregister(ctx context.Context, socket, namespace, name string) error {
	conn, err := dialAdmin(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = adminrpc.NewMeshClient(conn).DeregisterWorkload(ctx, &admin.DeregisterWorkloadRequest{Namespace: namespace, Name: name})
	return err
}

// Member implements supervisor.Registrar.
func (adminRegistrar) Member(ctx context.Context, socket string) (bool, error) {
	conn, err := dialAdmin(socket)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	status, err := adminrpc.NewFederationClient(conn).Status(ctx, &admin.StatusRequest{})
	if err != nil {
		return false, err
	}
	return status.GetRole() != "", nil
}

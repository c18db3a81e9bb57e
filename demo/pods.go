package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/demo/call"
	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/workload"
	"isthmus.dev/isthmus/mesh"
)

// pods runs programs in the callers' pods of the demo that the command line
// names, and asks its clusters for their services.
type pods struct {
	// demo is the command whose flags name the demo. They are known when a command runs.
	demo *cobra.Command
}

// Exec implements call.Execer. The demo's own callers stay for the next call; one
// with another account lives for this call only.
func (p pods) Exec(ctx context.Context, place call.Place, argv []string, stdin []byte) ([]byte, error) {
	c, err := client(p.demo)
	if err != nil {
		return nil, err
	}
	if place.Account != "" && place.Account != topology.Caller {
		return execAs(ctx, c, place, argv, stdin)
	}
	pod, err := c.Caller(ctx, place.Cluster, place.Zone)
	if err != nil {
		return nil, err
	}
	return capturedRun(ctx, c, place.Cluster, pod, argv, stdin)
}

// execAs runs a program in a pod of its own with the place's account.
func execAs(ctx context.Context, c control.Client, place call.Place, argv []string, stdin []byte) ([]byte, error) {
	w, err := c.NewWorkload(ctx, workload.Request{
		Cluster: place.Cluster, Namespace: topology.Namespace, Name: topology.Caller + "-" + strings.ToLower(rand.Text()[:8]),
		Account: place.Account, Zone: place.Zone, Labels: map[string]string{"app": topology.Caller},
	})
	if err != nil {
		return nil, err
	}
	out, err := capturedRun(ctx, c, place.Cluster, w.Pod, argv, stdin)
	return out, errors.Join(err, w.Release())
}

// capturedRun runs a program in a pod to its end and returns its output.
func capturedRun(ctx context.Context, c control.Client, cluster, pod string, argv []string, stdin []byte) ([]byte, error) {
	in, feed, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", argv[0], err)
	}
	defer in.Close()
	out, sink, err := os.Pipe()
	if err != nil {
		feed.Close()
		return nil, fmt.Errorf("run %s: %w", argv[0], err)
	}
	defer out.Close()
	run, err := c.Start(ctx, control.Exec{
		ExecRequest: control.ExecRequest{Cluster: cluster, Pod: pod, Argv: argv},
		Files:       []*os.File{in, sink, os.Stderr},
	})
	sink.Close()
	if err != nil {
		feed.Close()
		return nil, err
	}
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		defer feed.Close()
		// A program that ends without reading all says so by its exit code.
		_, _ = feed.Write(stdin)
	}()
	var stdout bytes.Buffer
	_, readErr := io.Copy(&stdout, out)
	code, err := run.Wait()
	in.Close() // ends a write that nobody reads
	<-fed
	if err := errors.Join(err, readErr); err != nil {
		return nil, fmt.Errorf("run %s in %s/%s: %w", argv[0], cluster, pod, err)
	}
	if code != 0 {
		return nil, fmt.Errorf("run %s in %s/%s: exit code %d", argv[0], cluster, pod, code)
	}
	return stdout.Bytes(), nil
}

// Services implements call.Services. Where the cluster's control plane does not answer, it gives the shop's, which the
// demo knows itself: calls go on without a control plane.
func (p pods) Services(ctx context.Context, cluster string) ([]call.Service, error) {
	h, err := home(p.demo)
	if err != nil {
		return nil, err
	}
	socket, err := h.AdminSocket(cluster)
	if err != nil {
		return nil, err
	}
	conn, err := dialAdmin(socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	reply, err := adminrpc.NewMeshClient(conn).ListServices(ctx, &admin.ListServicesRequest{})
	if err != nil {
		return shopServices(), nil
	}
	var list []call.Service
	for _, s := range reply.GetServices() {
		service := call.Service{Host: s.GetHost()}
		for _, port := range s.GetPorts() {
			service.Ports = append(service.Ports, call.ServicePort{Number: uint16(port.GetPort()), Protocol: call.Protocol(port.GetProtocol())})
		}
		list = append(list, service)
	}
	return list, nil
}

// shopServices are the services every demo starts with, by both of their names.
func shopServices() []call.Service {
	var list []call.Service
	for _, s := range topology.Services() {
		name := mesh.ServiceName{Namespace: topology.Namespace, Name: s.Name}
		for _, host := range []mesh.Host{name.LocalHost(), name.ClusterSetHost()} {
			list = append(list, call.Service{Host: string(host), Ports: []call.ServicePort{{Number: s.Port, Protocol: call.Protocol(s.Protocol)}}})
		}
	}
	return list
}

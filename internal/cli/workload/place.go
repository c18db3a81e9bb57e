package workload

import (
	"context"
	"os"
	"syscall"
	"time"
)

// Request is what somebody wants to run as a workload. Its JSON is how it travels to where the workload runs.
type Request struct {
	Cluster   string `json:"cluster"`
	Namespace string `json:"namespace"`
	// Name is the instance's, unique within the cluster.
	Name string `json:"name"`
	// Account is its service account; empty: default.
	Account string `json:"account,omitempty"`
	// Zone may be any; empty: the cluster's first.
	Zone   string            `json:"zone,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Service is what it is an instance of; empty: it only calls others.
	Service string `json:"service,omitempty"`
	Ports   []Port `json:"ports,omitempty"`
	Export  bool   `json:"export,omitempty"`
	// Probe is how its sidecar asks whether it answers, as mesh.ParseProbe reads it; empty: by tcp.
	Probe string `json:"probe,omitempty"`
}

// PortHealth is what the sidecar finds of one port.
type PortHealth struct {
	Number uint16 `json:"number"`
	Up     bool   `json:"up,omitempty"`
	// LoopbackOnly: something listens there, but for the pod itself only.
	LoopbackOnly bool `json:"loopbackOnly,omitempty"`
}

// Port is one that a workload serves.
type Port struct {
	Name   string `json:"name"`
	Number uint16 `json:"number"`
	// Protocol is http, grpc or tcp.
	Protocol string `json:"protocol"`
}

// Place is where workloads run. Its errors, and those of what it makes, say with exit.CodeUnreachable that it does not
// run itself.
type Place interface {
	// New makes a workload and returns when its sidecar is ready. ctx bounds the making only.
	New(ctx context.Context, r Request) (Workload, error)
}

// Workload is a network namespace with a sidecar, registered with the cluster's control plane. It ends with Release or
// with the process that holds it, and what runs in it is killed.
type Workload interface {
	// Address is where others of its cluster reach it.
	Address() string
	// Start runs a program in it, with the working directory, environment and umask of this process; files become the
	// program's descriptors 0, 1, 2 and so on. The end of ctx kills the program.
	Start(ctx context.Context, argv []string, files ...*os.File) (Program, error)
	// Health gives what its sidecar finds of the program's ports.
	Health(ctx context.Context) ([]PortHealth, error)
	// Leave deregisters it and returns when its connections have ended, or the limit is reached. It goes on running.
	Leave(limit time.Duration) error
	// Release ends it and returns when it is gone.
	Release() error
}

// Program is one that was started in a Workload.
type Program interface {
	// Executed tells whether it could be: it was found, but a file that is no program has no process.
	Executed() bool
	// Signal sends a signal to the program and what it has started.
	Signal(syscall.Signal) error
	// Wait returns the program's exit code: 128 and the number of the signal that ended it. The error tells that the
	// code is not known.
	Wait() (int, error)
}

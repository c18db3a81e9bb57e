package keeper

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/hack/kube/process"
)

// Status is the document of `kubelab status -o json`.
type Status struct {
	Name     string          `json:"name"`
	Dir      string          `json:"dir"`
	Link     string          `json:"link,omitempty"` // subnet that all nodes share
	Clusters []ClusterStatus `json:"clusters"`
}

// ClusterStatus is one cluster of a Status.
type ClusterStatus struct {
	Name       string         `json:"name"`
	Kubeconfig string         `json:"kubeconfig"`
	Server     string         `json:"server"` // address of the API server on the host
	State      process.State  `json:"state"`
	Pods       string         `json:"pods"`
	Services   string         `json:"services"`
	Nodes      []NodeStatus   `json:"nodes"`
	Programs   []ProgramState `json:"programs"` // of the control plane
}

// NodeStatus is one node of a ClusterStatus.
type NodeStatus struct {
	Name    string        `json:"name"`
	Address string        `json:"address"` // inside its cluster
	Link    string        `json:"link"`    // on the shared link, where NodePorts answer
	State   process.State `json:"state"`
	Cut     bool          `json:"cut"` // off the link by a fault
}

// ProgramState is one program of a control plane.
type ProgramState struct {
	Name  string        `json:"name"`
	State process.State `json:"state"`
}

// Target tells `kubelab exec` where to go: process and open files as numbered in the lab's process namespace.
type Target struct {
	PID   int `json:"pid"`   // of a node's init, 0 for the link
	NetFD int `json:"netFD"` // the keeper's open file of the network namespace
}

// serve answers kubelab's commands until ctx ends. The socket is reached through an open folder, because a socket's
// path is limited to 107 bytes and the lab's folder is not.
func (k *Keeper) serve(ctx context.Context) error {
	dir, err := unix.Open(k.config.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	listener, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir, SocketFile))
	if err != nil {
		return fmt.Errorf("listen for commands: %w", err)
	}
	if err := os.Chmod(filepath.Join(k.config.Dir, SocketFile), 0o600); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) { reply(w, k.status(), nil) })
	mux.HandleFunc("POST /fault", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, k.fault(r.Context(), r.FormValue("action"), r.FormValue("target")))
	})
	mux.HandleFunc("POST /load-image", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, k.loadImage(r.Context(), r.FormValue("cluster"), r.FormValue("file")))
	})
	mux.HandleFunc("GET /target", func(w http.ResponseWriter, r *http.Request) {
		target, err := k.target(r.FormValue("target"))
		reply(w, target, err)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	return server.Serve(listener)
}

// reply writes value, or err as {"error": …}.
func reply(w http.ResponseWriter, value any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
		value = map[string]string{"error": err.Error()}
	}
	json.NewEncoder(w).Encode(value) // the caller has gone when this fails
}

func (k *Keeper) status() Status {
	s := Status{Name: k.lab.Name, Dir: k.config.Dir, Link: k.lab.Link.String(), Clusters: []ClusterStatus{}}
	for _, c := range k.clusters {
		s.Clusters = append(s.Clusters, c.status())
	}
	return s
}

func (c *cluster) status() ClusterStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := ClusterStatus{Name: c.plan.Name, Kubeconfig: c.Kubeconfig(), Server: c.plan.HostAddr.String(), State: process.Up,
		Pods: c.plan.Pods.String(), Services: c.plan.Services.String(), Nodes: []NodeStatus{}, Programs: []ProgramState{}}
	if !c.ready {
		s.State = process.Faulty
		return s
	}
	for _, d := range append([]*process.Daemon{c.etcd, c.api}, c.others...) {
		state := ProgramState{Name: d.Name(), State: d.State()}
		s.Programs = append(s.Programs, state)
		if state.State != process.Up {
			s.State = process.Faulty
		}
	}
	down := 0
	for _, m := range c.nodes {
		n := NodeStatus{Name: m.plan.Name, Address: m.plan.LANAddr.String(), Link: m.plan.LinkAddr.String(), State: m.daemon.State(), Cut: m.cut}
		s.Nodes = append(s.Nodes, n)
		if n.State != process.Up {
			s.State = process.Faulty
			down++
		}
	}
	if down == len(c.nodes) && c.api.State() == process.Down {
		s.State = process.Down
	}
	return s
}

package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"isthmus.dev/isthmus/hack/kube/balancer"
	"isthmus.dev/isthmus/hack/kube/netns"
	"isthmus.dev/isthmus/hack/kube/node"
	"isthmus.dev/isthmus/hack/kube/plan"
	"isthmus.dev/isthmus/hack/kube/process"
)

// cluster is one running cluster: its namespaces, its control plane and its nodes.
type cluster struct {
	keeper  *Keeper
	plan    *plan.Cluster
	dir     string
	ns      *netns.Namespace // of the control plane; the switch of the cluster's own network is here
	etcd    *process.Daemon
	api     *process.Daemon
	others  []*process.Daemon // controller manager and scheduler
	config  *rest.Config
	typed   kubernetes.Interface
	dynamic dynamic.Interface

	mu    sync.Mutex
	nodes []*machine // guarded by mu until it is set, which is once, in wire
	ready bool       // guarded by mu
}

// machine is one node of a cluster.
type machine struct {
	plan   *plan.Node
	dir    string
	ns     *netns.Namespace
	daemon *process.Daemon
	cut    bool // off the link by a fault; guarded by the cluster's mu
}

func newCluster(k *Keeper, p *plan.Cluster) *cluster {
	return &cluster{keeper: k, plan: p, dir: filepath.Join(k.config.Dir, p.Name)}
}

// up brings the cluster up. What goes on afterwards runs until ctx ends; waiting ends with wait.
func (c *cluster) up(ctx, wait context.Context) error {
	if err := c.wire(); err != nil {
		return err
	}
	if err := c.writePKI(); err != nil {
		return err
	}
	if err := c.forward(ctx); err != nil {
		return err
	}
	if err := c.startStore(); err != nil {
		return err
	}
	for _, m := range c.nodes {
		if err := m.daemon.Start(); err != nil {
			return err
		}
	}
	var err error
	if c.config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig()); err != nil {
		return err
	}
	c.config.QPS, c.config.Burst = 100, 200
	if c.typed, err = kubernetes.NewForConfig(c.config); err != nil {
		return err
	}
	if c.dynamic, err = dynamic.NewForConfig(c.config); err != nil {
		return err
	}
	if err := c.waitAPI(wait); err != nil {
		return err
	}
	c.keeper.say("cluster %s: API server is ready", c.plan.Name)
	for _, d := range c.others {
		if err := d.Start(); err != nil {
			return err
		}
	}
	if err := c.furnish(wait); err != nil {
		return err
	}
	c.balance(ctx)
	if err := c.waitReady(wait); err != nil {
		return err
	}
	c.mu.Lock()
	c.ready = true
	c.mu.Unlock()
	return nil
}

// Kubeconfig is the file for the host's clients.
func (c *cluster) Kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

// wire makes the namespaces of the control plane and the nodes and joins them.
func (c *cluster) wire() (err error) {
	if c.ns, err = netns.New(); err != nil {
		return err
	}
	if err := c.ns.AddBridge(bridge, plan.MTU, withBits(c.plan.LANAddr, c.plan.LAN)); err != nil {
		return err
	}
	var nodes []*machine
	for i := range c.plan.Nodes {
		m, err := c.machine(&c.plan.Nodes[i])
		if err != nil {
			return fmt.Errorf("node %s: %w", c.plan.Nodes[i].Name, err)
		}
		nodes = append(nodes, m)
		// The API server calls webhooks and forwards ports at pods' own addresses.
		if err := c.ns.Route(m.plan.Pods, m.plan.LANAddr); err != nil {
			return err
		}
	}
	for _, m := range nodes {
		// A node's own programs call Services too. The kernel wants a route before it translates the address.
		if err := m.ns.Route(c.plan.Services, c.plan.LANAddr); err != nil {
			return err
		}
		for _, other := range nodes {
			if m == other {
				continue
			}
			if err := m.ns.Route(other.plan.Pods, other.plan.LANAddr); err != nil {
				return err
			}
		}
	}
	c.mu.Lock()
	c.nodes = nodes
	c.mu.Unlock()
	return nil
}

func (c *cluster) machine(p *plan.Node) (*machine, error) {
	k := c.keeper
	m := &machine{plan: p, dir: filepath.Join(c.dir, "nodes", p.Name)}
	var err error
	if m.ns, err = netns.New(); err != nil {
		return nil, err
	}
	if err := c.ns.Cable(bridge, p.Name, m.ns, node.LANIface, plan.MTU, withBits(p.LANAddr, c.plan.LAN)); err != nil {
		return nil, err
	}
	if err := k.link.Cable(bridge, p.Name, m.ns, node.LinkIface, plan.MTU, withBits(p.LinkAddr, k.lab.Link)); err != nil {
		return nil, err
	}
	if err := m.ns.Sysctl(map[string]string{"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0"}); err != nil {
		return nil, err
	}
	config := filepath.Join(m.dir, "node.json")
	if err := writeJSON(config, node.Config{
		Name: p.Name, State: m.dir, Bin: k.config.Bin, Images: []string{"pause.tar", "coredns.tar"},
		Cgroup: "/" + k.config.Cgroup, Address: p.LANAddr, Pods: p.Pods, ClusterPods: c.plan.Pods, DNS: c.plan.DNS,
		API:          netip.AddrPortFrom(c.plan.LANAddr, plan.APIPort).String(),
		LowersScores: k.config.LowersScores, Snapshotter: k.config.Snapshotter, Patience: k.config.Patience,
	}); err != nil {
		return nil, err
	}
	m.daemon = process.NewDaemon(k.reaper, k.log, process.Spec{
		Name: p.Name, Path: "/proc/self/exe", Args: []string{"node", config}, Log: filepath.Join(m.dir, "log", "init.log"),
		Inside: m.ns, Clone: nodeNamespaces,
	})
	return m, nil
}

// forward serves the API server at its address on the host.
func (c *cluster) forward(ctx context.Context) error {
	at := netip.AddrPortFrom(c.plan.HostAddr, plan.APIPort)
	listener, err := net.Listen("tcp4", at.String())
	if err != nil {
		return fmt.Errorf("listen for the API server on the host; another lab whose name maps to the same address may run, give this one another name: %w", err)
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed: the lab ends
			}
			go c.splice(conn)
		}
	}()
	return nil
}

func (c *cluster) splice(host net.Conn) {
	defer host.Close()
	inside, err := c.ns.Dial(netip.AddrPortFrom(c.plan.LANAddr, plan.APIPort))
	if err != nil {
		return // the API server is down; so is the connection
	}
	defer inside.Close()
	done := make(chan struct{}, 2)
	pipe := func(to, from net.Conn) {
		io.Copy(to, from)
		if tcp, ok := to.(*net.TCPConn); ok {
			tcp.CloseWrite()
		}
		done <- struct{}{}
	}
	go pipe(host, inside)
	go pipe(inside, host)
	<-done
	<-done
}

// waitAPI returns when the API server answers that it is ready.
func (c *cluster) waitAPI(ctx context.Context) error {
	client, err := rest.HTTPClientFor(c.config)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	return poll(ctx, "API server", func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.config.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
}

// balance starts the load balancer's stand-in.
func (c *cluster) balance(ctx context.Context) {
	spaces := map[string]*netns.Namespace{}
	for _, m := range c.nodes {
		spaces[m.plan.Name] = m.ns
	}
	go func() {
		err := balancer.Run(ctx, balancer.Config{Cluster: c.plan.Name, Client: c.typed, Nodes: spaces, Iface: node.LinkIface,
			First: c.plan.BalancerFirst, Last: c.plan.BalancerLast, Log: c.keeper.log})
		if ctx.Err() == nil {
			c.keeper.log.Error("balancer ended", "cluster", c.plan.Name, "err", err)
		}
	}()
}

// poll calls try until it returns nil; the error of the last call goes with that of ctx.
func poll(ctx context.Context, what string, try func() error) error {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %w", what, err, ctx.Err())
		case <-ticker.C:
		}
	}
}

func withBits(a netip.Addr, p netip.Prefix) netip.Prefix { return netip.PrefixFrom(a, p.Bits()) }

func write(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

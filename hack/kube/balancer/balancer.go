// Package balancer stands in for the load balancer of a cloud: it gives every Service of type LoadBalancer an address
// on the shared link and lets one ready node of the cluster answer for it. kube-proxy on that node does the rest. When
// the node is lost the address moves.
package balancer

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"isthmus.dev/isthmus/hack/kube/netns"
)

// resync is how often everything is compared again, should an update have failed.
const resync = 5 * time.Second

// Config is what a balancer serves.
type Config struct {
	Cluster     string
	Client      kubernetes.Interface
	First, Last netip.Addr
	// Nodes are the namespaces of the nodes by name, Iface the interface on the link in each.
	Nodes map[string]*netns.Namespace
	Iface string
	Log   *slog.Logger
}

// Run serves until ctx ends.
func Run(ctx context.Context, c Config) error {
	factory := informers.NewSharedInformerFactory(c.Client, 0)
	defer factory.Shutdown()
	services, nodes := factory.Core().V1().Services(), factory.Core().V1().Nodes()
	changed := make(chan struct{}, 1)
	signal := func() {
		select {
		case changed <- struct{}{}:
		default: // a comparison is due already
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { signal() }, UpdateFunc: func(any, any) { signal() }, DeleteFunc: func(any) { signal() },
	}
	for _, informer := range []cache.SharedIndexInformer{services.Informer(), nodes.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return fmt.Errorf("balancer of cluster %s: %w", c.Cluster, err)
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	b := &balancer{Config: c, services: services.Lister(), nodes: nodes.Lister(), placed: map[netip.Addr]string{}}
	ticker := time.NewTicker(resync)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-ticker.C:
		}
		if err := b.reconcile(ctx); err != nil && ctx.Err() == nil {
			c.Log.Warn("balancer could not update", "cluster", c.Cluster, "err", err)
		}
	}
}

// balancer is owned by the goroutine of Run.
type balancer struct {
	Config
	services listers.ServiceLister
	nodes    listers.NodeLister
	placed   map[netip.Addr]string // the node that answers for an address
}

func (b *balancer) reconcile(ctx context.Context) error {
	all, err := b.services.List(labels.Everything())
	if err != nil {
		return err
	}
	var wanted []Service
	for _, s := range all {
		if s.Spec.Type != core.ServiceTypeLoadBalancer || s.Spec.LoadBalancerClass != nil || s.DeletionTimestamp != nil {
			continue
		}
		asked, _ := netip.ParseAddr(s.Spec.LoadBalancerIP)
		wanted = append(wanted, Service{Key: s.Namespace + "/" + s.Name, Current: address(s), Asked: asked})
	}
	given := Assign(b.First, b.Last, wanted)
	if err := b.place(given); err != nil {
		return err
	}
	for _, s := range all {
		addr := given[s.Namespace+"/"+s.Name]
		current := address(s)
		if addr == current || !addr.IsValid() && !current.IsValid() {
			continue
		}
		if err := b.publish(ctx, s.DeepCopy(), addr); err != nil {
			return err
		}
	}
	return nil
}

// place puts every given address on the first ready node and takes all others away.
func (b *balancer) place(given map[string]netip.Addr) error {
	node, err := b.ready()
	if err != nil || node == "" {
		return err // with no ready node addresses stay where they are
	}
	keep := map[netip.Addr]bool{}
	for _, addr := range given {
		keep[addr] = true
		if b.placed[addr] == node {
			continue
		}
		if from := b.placed[addr]; from != "" {
			if err := b.Nodes[from].RemoveAddr(b.Iface, addr); err != nil {
				return err
			}
		}
		if err := b.Nodes[node].AddAddr(b.Iface, addr); err != nil {
			return err
		}
		if err := b.Nodes[node].Announce(b.Iface, addr); err != nil {
			return err
		}
		b.placed[addr] = node
	}
	for addr, at := range b.placed {
		if keep[addr] {
			continue
		}
		if err := b.Nodes[at].RemoveAddr(b.Iface, addr); err != nil {
			return err
		}
		delete(b.placed, addr)
	}
	return nil
}

// ready returns the first ready node's name in alphabetical order, "" when there is none. A node that already answers
// for addresses is preferred, so that a node's return moves nothing.
func (b *balancer) ready() (string, error) {
	nodes, err := b.nodes.List(labels.Everything())
	if err != nil {
		return "", err
	}
	first, busy := "", map[string]bool{}
	for _, at := range b.placed {
		busy[at] = true
	}
	for _, n := range nodes {
		if b.Nodes[n.Name] == nil || !isReady(n) {
			continue
		}
		if first == "" || busy[n.Name] && !busy[first] || busy[n.Name] == busy[first] && n.Name < first {
			first = n.Name
		}
	}
	return first, nil
}

func isReady(n *core.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == core.NodeReady {
			return c.Status == core.ConditionTrue
		}
	}
	return false
}

func (b *balancer) publish(ctx context.Context, s *core.Service, addr netip.Addr) error {
	s.Status.LoadBalancer = core.LoadBalancerStatus{}
	if addr.IsValid() {
		s.Status.LoadBalancer.Ingress = []core.LoadBalancerIngress{{IP: addr.String()}}
	}
	if _, err := b.Client.CoreV1().Services(s.Namespace).UpdateStatus(ctx, s, meta.UpdateOptions{}); err != nil &&
		!apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return fmt.Errorf("publish %v for service %s/%s: %w", addr, s.Namespace, s.Name, err)
	}
	return nil
}

// address is the one that was published for s, or the zero value.
func address(s *core.Service) netip.Addr {
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if addr, err := netip.ParseAddr(ingress.IP); err == nil {
			return addr
		}
	}
	return netip.Addr{}
}

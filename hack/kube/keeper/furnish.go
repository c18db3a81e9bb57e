package keeper

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

//go:embed addons/*.yaml
var addons embed.FS

// clusterScoped are the kinds of the addons that have no namespace.
var clusterScoped = []string{"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}

// furnish puts into a cluster what it has from the start: its nodes' objects, roles, the multi-cluster definitions of
// the MCS API and DNS.
func (c *cluster) furnish(ctx context.Context) error {
	for _, m := range c.nodes {
		// Made before the kubelet registers, so that the pod network of a node is the plan's and not a matter of
		// who comes first.
		n := &core.Node{ObjectMeta: metav1.ObjectMeta{Name: m.plan.Name, Labels: map[string]string{
			"kubernetes.io/hostname": m.plan.Name, "topology.kubernetes.io/region": c.plan.Name, "topology.kubernetes.io/zone": m.plan.Name}}}
		n.Spec.PodCIDR, n.Spec.PodCIDRs = m.plan.Pods.String(), []string{m.plan.Pods.String()}
		if err := c.registerNode(ctx, n); err != nil {
			return err
		}
	}
	texts, err := c.addonTexts()
	if err != nil {
		return err
	}
	for name, text := range texts {
		if err := c.apply(ctx, text); err != nil {
			return fmt.Errorf("apply %s: %w", name, err)
		}
	}
	return nil
}

// registerNode creates the node's object, or completes the one that an early kubelet made.
func (c *cluster) registerNode(ctx context.Context, n *core.Node) error {
	_, err := c.typed.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
	if err == nil || !apierrors.IsAlreadyExists(err) {
		return err
	}
	return poll(ctx, "node "+n.Name, func() error {
		have, err := c.typed.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		have.Spec.PodCIDR, have.Spec.PodCIDRs = n.Spec.PodCIDR, n.Spec.PodCIDRs
		for k, v := range n.Labels {
			metav1.SetMetaDataLabel(&have.ObjectMeta, k, v)
		}
		_, err = c.typed.CoreV1().Nodes().Update(ctx, have, metav1.UpdateOptions{})
		return err
	})
}

// addonTexts returns the YAML of the addons, with this cluster's addresses, by file name.
func (c *cluster) addonTexts() (map[string][]byte, error) {
	texts := map[string][]byte{}
	err := fs.WalkDir(addons, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := addons.ReadFile(path)
		texts[path] = bytes.ReplaceAll(text, []byte("DNS_ADDRESS"), []byte(c.plan.DNS.String()))
		return err
	})
	if err != nil {
		return nil, err
	}
	definitions, err := filepath.Glob(filepath.Join(c.keeper.config.Bin, "crds", "*.yaml"))
	if err != nil {
		return nil, err
	}
	for _, path := range definitions {
		if texts[path], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return texts, nil
}

// apply applies every document of a YAML text, server side.
func (c *cluster) apply(ctx context.Context, text []byte) error {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(object.Object) == 0 {
			continue
		}
		plural, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
		var client dynamic.ResourceInterface = c.dynamic.Resource(plural)
		if !slices.Contains(clusterScoped, object.GetKind()) {
			client = c.dynamic.Resource(plural).Namespace(object.GetNamespace())
		}
		err := poll(ctx, object.GetKind()+" "+object.GetName(), func() error {
			_, err := client.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: "kubelab", Force: true})
			return err
		})
		if err != nil {
			return err
		}
	}
}

// waitReady returns when every node is ready and DNS answers on every node.
func (c *cluster) waitReady(ctx context.Context) error {
	for _, m := range c.nodes {
		if err := poll(ctx, "node "+m.plan.Name, func() error { return c.nodeReady(ctx, m.plan.Name) }); err != nil {
			return err
		}
	}
	c.keeper.say("cluster %s: nodes are ready", c.plan.Name)
	for _, m := range c.nodes {
		err := poll(ctx, "DNS on node "+m.plan.Name, func() error {
			return m.ns.Do(func() error { return ask(c.plan.DNS, "kubernetes.default.svc.cluster.local.", c.plan.APIVIP) })
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) nodeReady(ctx context.Context, name string) error {
	n, err := c.typed.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range n.Status.Conditions {
		if condition.Type == core.NodeReady && condition.Status == core.ConditionTrue {
			return nil
		}
	}
	return errors.New("condition Ready is not true")
}

// ask sends one DNS query for an A record and checks the answer; it runs in the namespace of its thread.
func ask(server netip.Addr, name string, want netip.Addr) error {
	parsed, err := dnsmessage.NewName(name)
	if err != nil {
		return err
	}
	query := dnsmessage.Message{Header: dnsmessage.Header{ID: 1, RecursionDesired: true}, Questions: []dnsmessage.Question{
		{Name: parsed, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	packet, err := query.Pack()
	if err != nil {
		return err
	}
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(server, 53)))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(packet); err != nil {
		return err
	}
	buffer := make([]byte, 1500)
	n, err := conn.Read(buffer)
	if err != nil {
		return err
	}
	var answer dnsmessage.Message
	if err := answer.Unpack(buffer[:n]); err != nil {
		return err
	}
	for _, record := range answer.Answers {
		if a, ok := record.Body.(*dnsmessage.AResource); ok && netip.AddrFrom4(a.A) == want {
			return nil
		}
	}
	return fmt.Errorf("%s answered %s with %s", server, strings.TrimSuffix(name, "."), answer.RCode)
}

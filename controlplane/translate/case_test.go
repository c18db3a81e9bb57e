package translate_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	. "isthmus.dev/isthmus/controlplane/translate"
	"net/netip"
	"path"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/golden"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// scenario is the part of a test case that is not in the registry.
type scenario struct {
	Self    mesh.ClusterName `json:"self"`
	Members []struct {
		Name       mesh.ClusterName `json:"name"`
		Region     string           `json:"region"`
		Gateways   []string         `json:"gateways"`
		Namespaces []string         `json:"namespaces"`
		Authority  bool             `json:"authority"`
	} `json:"members"`
	Proxy struct {
		Kind      mesh.ProxyKind `json:"kind"`
		Namespace string         `json:"namespace"`
		Instance  string         `json:"instance"`
	} `json:"proxy"`
	// NotReady lists workloads, "<namespace>/<name>".
	NotReady []string `json:"notReady"`
	// Slots of local services, "<namespace>/<name>" → pods of each slot.
	Slots map[string][][]string `json:"slots"`
	// Remote catalogues, cluster → "<namespace>/<name>" → service.
	Remote map[mesh.ClusterName]map[string]struct {
		Ports      []mesh.Port        `json:"ports"`
		Identities []string           `json:"identities"`
		Slots      []mesh.Slot        `json:"slots"`
		To         []mesh.ClusterName `json:"to"`
		// Rules are the producer's, as YAML.
		Rules string `json:"rules"`
	} `json:"remote"`
	// Show limits what is compared to resources that match one of these patterns, "<Type>/<name>".
	Show []string `json:"show"`
}

const testFederation = "demo.isthmus.internal"

func serviceName(t testing.TB, s string) mesh.ServiceName {
	t.Helper()
	ns, name, ok := strings.Cut(s, "/")
	if !ok {
		t.Fatalf("%q is not <namespace>/<name>", s)
	}
	return mesh.ServiceName{Namespace: ns, Name: name}
}

// snapshot builds the snapshot a scenario and a registry describe.
func snapshot(t testing.TB, sc *scenario, registry []byte) *scene {
	t.Helper()
	objects, findings := config.Decode([]config.File{{Name: "registry.yaml", Data: registry}}, "shop")
	if config.HasError(findings) {
		t.Fatalf("registry: %+v", findings)
	}
	s := &scene{
		Config: &sceneConfig{Services: map[mesh.ServiceName]*mesh.Service{}}, Workloads: map[mesh.WorkloadName]*mesh.Workload{},
		Slots: map[mesh.ServiceName][]mesh.SlotPods{}, Remote: map[mesh.ClusterName]*mesh.Catalogue{},
		Trust: &mesh.Trust{Federation: testFederation, Self: sc.Self, AnchorPEM: []byte("the anchor\n")},
	}
	exports := map[mesh.ServiceName]*mesh.Export{}
	for _, o := range objects {
		switch v := o.Value.(type) {
		case *mesh.Service:
			s.Config.Services[v.Name] = v
		case *mesh.Export:
			exports[mesh.ServiceName{Namespace: o.Namespace, Name: o.Name}] = v
		case *mesh.Workload:
			s.Workloads[v.Name] = v
		case *rule.Object:
			s.Config.Rules = append(s.Config.Rules, v)
		}
	}
	for name, export := range exports {
		if service := s.Config.Services[name]; service != nil {
			service.Export = export
		}
	}
	for _, m := range sc.Members {
		member := mesh.Member{Name: m.Name, Region: m.Region, Namespaces: m.Namespaces, Authority: m.Authority}
		for _, g := range m.Gateways {
			member.Gateways = append(member.Gateways, mesh.Gateway{Address: netip.MustParseAddrPort(g)})
		}
		s.Trust.Members = append(s.Trust.Members, member)
	}
	for _, w := range sc.NotReady {
		n := serviceName(t, w)
		s.Workloads[mesh.WorkloadName(n)].Ready = false
	}
	for svc, slots := range sc.Slots {
		name := serviceName(t, svc)
		for i, pods := range slots {
			slot := mesh.SlotPods{Slot: mesh.Slot{Index: uint32(i)}}
			for _, p := range pods {
				slot.Pods = append(slot.Pods, mesh.WorkloadName{Namespace: name.Namespace, Name: p})
			}
			s.Slots[name] = append(s.Slots[name], slot)
		}
	}
	for c, services := range sc.Remote {
		catalogue := &mesh.Catalogue{Cluster: c, Services: map[mesh.ServiceName]*mesh.ExportedService{}}
		for name, svc := range services {
			n := serviceName(t, name)
			e := &mesh.ExportedService{Name: n, Ports: svc.Ports, Identities: svc.Identities, Slots: svc.Slots, To: svc.To}
			rules, findings := config.Decode([]config.File{{Name: "rules", Data: []byte(svc.Rules)}}, n.Namespace)
			if config.HasError(findings) {
				t.Fatalf("rules of %s: %+v", name, findings)
			}
			for _, o := range rules {
				if o.Kind == "VirtualService" {
					e.VirtualServices = append(e.VirtualServices, o.JSON)
				} else {
					e.DestinationRules = append(e.DestinationRules, o.JSON)
				}
			}
			if len(rules) > 0 {
				e.Producer = config.Producer(c, e)
			}
			catalogue.Services[n] = e
		}
		s.Remote[c] = catalogue
	}
	var hosts []mesh.Host
	for name := range s.Config.Services {
		hosts = append(hosts, name.LocalHost(), name.ClusterSetHost())
	}
	for _, c := range s.Remote {
		for name := range c.Services {
			hosts = append(hosts, name.ClusterSetHost())
		}
	}
	var err error
	if s.VIPs, err = allocate.Addresses(nil, hosts); err != nil {
		t.Fatal(err)
	}
	return s
}

func load(t testing.TB, a *golden.Archive) (*scene, mesh.ProxyID, *scenario) {
	t.Helper()
	raw, ok := a.File("scenario.yaml")
	if !ok {
		t.Fatal("the case has no scenario.yaml")
	}
	sc := &scenario{}
	if err := yaml.UnmarshalStrict(raw, sc); err != nil {
		t.Fatalf("scenario.yaml: %v", err)
	}
	registry, _ := a.File("registry.yaml")
	s := snapshot(t, sc, registry)
	return s, mesh.ProxyID{Kind: sc.Proxy.Kind, Namespace: sc.Proxy.Namespace, Instance: sc.Proxy.Instance}, sc
}

var testOptions = Options{FederationSocket: "/run/isthmus/federation.sock", RootNamespace: mesh.SystemNamespace}

// TestCases compares the configuration of each case and has Envoy itself check all of it, shown or not.
func TestCases(t *testing.T) {
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, a *golden.Archive) {
		s, p, sc := load(t, a)
		resources := ResourcesOf(s, p, testOptions)
		a.Compare(t, "envoy.json", show(t, resources, sc.Show))
		validate(t, resources)

		again, _, _ := load(t, a)
		if first, second := Generate(s, p, testOptions), Generate(again, p, testOptions); first.Types() != nil {
			for _, typeURL := range first.Types() {
				if first.Version(typeURL) != second.Version(typeURL) {
					t.Errorf("equal snapshots gave different %s", typeURL)
				}
			}
		}
	})
}

// show renders resources as sorted JSON, "<Type>/<name>" → resource.
func show(t testing.TB, resources map[string][]Named, patterns []string) []byte {
	t.Helper()
	out := map[string]any{}
	for _, list := range resources {
		for _, r := range list {
			key := string(r.Message.ProtoReflect().Descriptor().Name()) + "/" + r.Name
			if len(patterns) > 0 && !matches(patterns, key) {
				continue
			}
			if _, twice := out[key]; twice {
				t.Errorf("resource %s is there twice", key)
			}
			out[key] = asJSON(t, r.Message)
		}
	}
	b, err := json.MarshalIndent(out, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(bytes.ReplaceAll(b, []byte(`\u003c`), []byte("<")), '\n')
}

func matches(patterns []string, key string) bool {
	for _, p := range patterns {
		// path.Match must not stop at the slashes of a name.
		if ok, err := path.Match(strings.ReplaceAll(p, "/", "\x00"), strings.ReplaceAll(key, "/", "\x00")); err == nil && ok {
			return true
		}
	}
	return false
}

func asJSON(t testing.TB, m proto.Message) map[string]any {
	t.Helper()
	raw, err := protojson.Marshal(m)
	if err != nil {
		t.Fatalf("encode %T: %v", m, err)
	}
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestEndpointsTouchOneResource: the health of one workload changes nothing but the endpoints of its own hosts.
func TestEndpointsTouchOneResource(t *testing.T) {
	a := golden.Open(t, "testdata/priorities.txtar")
	s, p, _ := load(t, a)
	was := world.Folded{}.Apply(s.updates()...)
	plan := build.From(was.Snapshot(), testOptions)
	before, own := plan.For(p, build.Own{})
	is := was.Apply(mesh.SetHealth{Name: mesh.WorkloadName{Namespace: "shop", Name: "ratings-1"}})
	after, _ := plan.Step(is.Snapshot()).For(p, own)
	got := map[string][]string{}
	for _, typeURL := range after.Types() {
		names, removed := diff(before, after, typeURL)
		if len(names)+len(removed) > 0 {
			got[typeURL] = append(names, removed...)
		}
	}
	want := "map[type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment:[outbound|8080||ratings.shop.svc.cluster.local outbound|8080||ratings.shop.svc.clusterset.local]]"
	if fmt.Sprint(got) != want {
		t.Errorf("got changes of %v, want %s", got, want)
	}
}

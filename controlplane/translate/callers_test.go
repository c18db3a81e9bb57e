package translate_test

import (
	"fmt"
	. "isthmus.dev/isthmus/controlplane/translate"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

var memberNames = rapid.SliceOfNDistinct(rapid.SampledFrom([]mesh.ClusterName{"west", "north", "c4", "c5", "south", "a", "zz-9"}), 1, 6, rapid.ID)

// drawnMesh is a snapshot of east with services of every protocol, each exported to all, to some, or not at all.
func drawnMesh(t *rapid.T, members []mesh.ClusterName) *scene {
	s := &scene{
		Config:    &sceneConfig{Services: map[mesh.ServiceName]*mesh.Service{}},
		Workloads: map[mesh.WorkloadName]*mesh.Workload{},
		Remote:    map[mesh.ClusterName]*mesh.Catalogue{},
		Trust:     &mesh.Trust{Federation: testFederation, Self: "east", AnchorPEM: []byte("the anchor\n"), Members: []mesh.Member{member("east")}},
	}
	for _, m := range members {
		s.Trust.Members = append(s.Trust.Members, member(m))
	}
	name := mesh.WorkloadName{Namespace: "shop", Name: "pod"}
	s.Workloads[name] = &mesh.Workload{Name: name, ServiceAccount: "pod", Ready: true, Address: netip.MustParseAddr("10.0.0.1"), Labels: map[string]string{"app": "pod"}}
	for i := range rapid.IntRange(1, 5).Draw(t, "services") {
		svc := &mesh.Service{
			Name: mesh.ServiceName{Namespace: "shop", Name: fmt.Sprintf("s%d", i)}, Selector: map[string]string{"app": "pod"},
			Ports: []mesh.Port{{Number: 80, TargetPort: rapid.Uint32Range(8080, 8082).Draw(t, "port"),
				Protocol: rapid.SampledFrom([]mesh.Protocol{mesh.HTTP, mesh.GRPC, mesh.TCP}).Draw(t, "protocol")}},
		}
		switch rapid.IntRange(0, 2).Draw(t, "export") {
		case 1:
			svc.Export = &mesh.Export{}
		case 2:
			svc.Export = &mesh.Export{To: memberNames.Draw(t, "to")}
		}
		s.Config.Services[svc.Name] = svc
	}
	return s
}

func member(name mesh.ClusterName) mesh.Member {
	return mesh.Member{Name: name, Namespaces: []string{"shop"}, Gateways: []mesh.Gateway{{Address: netip.MustParseAddrPort("172.30.0.1:15443")}}}
}

// inboundOf gives the inbound listener's chains and routes, encoded, by name.
func inboundOf(t *rapid.T, s *scene) map[string]string {
	out := map[string]string{}
	resources := ResourcesOf(s, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: "pod"}, testOptions)
	for _, r := range slices.Concat(resources[xds.ListenerType], resources[xds.RouteType]) {
		if r.Name == InboundListener || strings.HasPrefix(r.Name, "inbound|") {
			raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Message)
			if err != nil {
				t.Fatal(err)
			}
			out[r.Name] = string(raw)
		}
	}
	if out[InboundListener] == "" {
		t.Fatal("no inbound listener: nothing was compared")
	}
	return out
}

// TestJoinsAndLeavesChangeNoChain: a changed chain costs the TCP connections of its port.
func TestJoinsAndLeavesChangeNoChain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawnMesh(t, memberNames.Draw(t, "members"))
		before := inboundOf(t, s)
		s.Trust.Members = []mesh.Member{member("east")}
		for _, m := range memberNames.Draw(t, "members then") {
			s.Trust.Members = slices.Insert(s.Trust.Members, rapid.IntRange(0, len(s.Trust.Members)).Draw(t, "place"), member(m))
		}
		s.Trust.Seq++
		s.Trust.AnchorPEM = []byte("another anchor\n")
		after := inboundOf(t, s)
		for name, was := range before {
			if after[name] != was {
				t.Errorf("%s changed", name)
			}
		}
		if len(before) != len(after) {
			t.Errorf("%d resources became %d", len(before), len(after))
		}
	})
}

// TestCallers: who is let in, by the rules a port gets.
func TestCallers(t *testing.T) {
	list := func(to ...mesh.ClusterName) *mesh.Export { return &mesh.Export{To: to} }
	for _, c := range []struct {
		name    string
		exports []*mesh.Export // of the services on the port; nil: not exported
		granted bool
		refused []mesh.ClusterName
		want    string
		why     string
	}{
		{"not exported", []*mesh.Export{nil}, true, nil, "[east]", "what is not exported is for the own cluster"},
		{"exported", []*mesh.Export{list()}, true, nil, "any", "no list: any member"},
		{"not granted", []*mesh.Export{list()}, false, nil, "[east]", "the federation does not let this cluster export the namespace"},
		{"a list", []*mesh.Export{list("west", "c9")}, true, nil, "[east c9 west]", "whom the export names, member or not: c9 may join later"},
		{"a list with the own name", []*mesh.Export{list("west", "east")}, true, nil, "[east west]", "once"},
		{"two lists", []*mesh.Export{list("west"), nil, list("north")}, true, nil, "[east north west]", "of one port, together"},
		{"a list and none", []*mesh.Export{list("west"), list()}, true, nil, "any", "the wider one"},
		{"evicted", []*mesh.Export{list()}, true, []mesh.ClusterName{"west"}, "any but [west]", "an evicted member's connections live on"},
		{"evicted from a list", []*mesh.Export{list("north", "west")}, true, []mesh.ClusterName{"west"}, "[east north]", "out of the list"},
		{"evicted and not concerned", []*mesh.Export{list("north")}, true, []mesh.ClusterName{"west"}, "[east north]", "a chain it was not in stays as it is"},
	} {
		trust := &mesh.Trust{Federation: testFederation, Self: "east", Refused: c.refused, Members: []mesh.Member{{Name: "east"}}}
		if c.granted {
			trust.Members[0].Namespaces = []string{"shop"}
		}
		var services []*mesh.Service
		for _, e := range c.exports {
			services = append(services, &mesh.Service{Name: reviews, Export: e})
		}
		anyMember, clusters, refused := CallersOf(trust, services)
		text := fmt.Sprint(clusters)
		if anyMember {
			text = "any"
		}
		if len(refused) > 0 {
			text += fmt.Sprint(" but ", refused)
		}
		if text != c.want {
			t.Errorf("%s: got %s, want %s: %s", c.name, text, c.want, c.why)
		}
	}
}

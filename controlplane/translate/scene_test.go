package translate_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/config"
	. "isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/xds"
)

// scene is a state in a form that tests can write down and change. What is translated is always a snapshot made of it.
type scene struct {
	Config    *sceneConfig
	Workloads map[mesh.WorkloadName]*mesh.Workload
	Slots     map[mesh.ServiceName][]mesh.SlotPods
	Remote    map[mesh.ClusterName]*mesh.Catalogue
	Trust     *mesh.Trust
	VIPs      map[mesh.Host]netip.Addr
	Ready     bool
}

// sceneConfig is its configuration.
type sceneConfig struct {
	Services map[mesh.ServiceName]*mesh.Service
	Rules    []*rule.Object
}

func (s *scene) updates() []mesh.Update {
	out := []mesh.Update{mesh.SetTrust{Trust: s.Trust}, mesh.SetVIPs{VIPs: s.VIPs}}
	for _, source := range mesh.Sources {
		out = append(out, mesh.Synced{Source: source})
	}
	for name, service := range s.Config.Services {
		plain := *service
		plain.Export = nil
		out = append(out, mesh.SetObject{Name: mesh.ObjectName{Kind: config.KindService, Namespace: name.Namespace, Name: name.Name}, Value: &plain})
		if service.Export != nil {
			out = append(out, mesh.SetObject{Name: mesh.ObjectName{Kind: config.KindServiceExport, Namespace: name.Namespace, Name: name.Name}, Value: service.Export})
		}
	}
	for _, r := range s.Config.Rules {
		out = append(out, mesh.SetObject{Name: r.Name, Value: r})
	}
	for _, w := range s.Workloads {
		out = append(out, mesh.SetWorkload{Workload: w})
	}
	for name, slots := range s.Slots {
		out = append(out, mesh.SetSlots{Service: name, Slots: mesh.Placement{Served: true, Slots: slots}})
	}
	for c, catalogue := range s.Remote {
		out = append(out, mesh.SetRemote{Cluster: c, Catalogue: catalogue})
	}
	return out
}

func (s *scene) snapshot() *world.Snapshot { return world.Folded{}.Apply(s.updates()...).Snapshot() }

// compiled are the rules of documents that have no error.
func compiled(t testing.TB, documents string) []*rule.Object {
	t.Helper()
	objects, findings := config.Decode([]config.File{{Name: "rules.yaml", Data: []byte(documents)}}, "shop")
	if config.HasError(findings) {
		t.Fatalf("rules: %+v", findings)
	}
	var out []*rule.Object
	for _, o := range objects {
		out = append(out, o.Value.(*rule.Object))
	}
	return out
}

// Generate gives the whole configuration of one proxy.
func Generate(s *scene, p mesh.ProxyID, o Options) xds.State {
	state, _ := build.From(s.snapshot(), o).For(p, build.Own{})
	return state
}

// Named is one resource, decoded.
type Named struct {
	Name    string
	Message proto.Message
}

// ResourcesOf gives every resource of a proxy by type URL, sorted by name.
func ResourcesOf(s *scene, p mesh.ProxyID, o Options) map[string][]Named {
	out := map[string][]Named{}
	state := Generate(s, p, o)
	for _, t := range state.Types() {
		for r := range state.All(t) {
			m, err := r.Body.UnmarshalNew()
			if err != nil {
				panic(fmt.Sprintf("decode %s %s: %v", t, r.Name, err))
			}
			out[t] = append(out[t], Named{r.Name, m})
		}
		slices.SortFunc(out[t], func(a, b Named) int { return strings.Compare(a.Name, b.Name) })
	}
	return out
}

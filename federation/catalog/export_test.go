package catalog

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/mesh"
)

func TestExport(t *testing.T) {
	name := func(ns, n string) mesh.ServiceName { return mesh.ServiceName{Namespace: ns, Name: n} }
	local := func(ns, n string, export *mesh.Export) *mesh.Service {
		return &mesh.Service{
			Name: name(ns, n), Selector: map[string]string{"app": n}, Export: export,
			Ports: []mesh.Port{{Name: "http", Number: 80, TargetPort: 8080, Protocol: mesh.HTTP}},
		}
	}
	workload := func(ns, n, app, account string) *mesh.Workload {
		return &mesh.Workload{
			Name: mesh.WorkloadName{Namespace: ns, Name: n}, ServiceAccount: account,
			Address: netip.MustParseAddr("10.0.0.1"), Labels: map[string]string{"app": app},
		}
	}
	s := &mesh.Snapshot{
		Trust: &mesh.Trust{Self: "west", Members: []mesh.Member{{Name: "west", Namespaces: []string{"shop"}}}},
		Config: &mesh.Config{
			Services: map[mesh.ServiceName]*mesh.Service{
				name("shop", "reviews"): local("shop", "reviews", &mesh.Export{To: []mesh.ClusterName{"north", "east", "east"}}),
				name("shop", "empty"):   local("shop", "empty", &mesh.Export{}),
				name("shop", "payroll"): local("shop", "payroll", nil),
				name("bank", "ledger"):  local("bank", "ledger", &mesh.Export{}),
				name("shop", "broken"):  {Name: name("shop", "broken"), Export: &mesh.Export{}},
			},
			VirtualServices: []*mesh.VirtualService{
				{Object: mesh.ObjectName{Namespace: "shop", Name: "v"}, Hosts: []mesh.Host{"reviews.shop.svc.cluster.local"}, Source: []byte("v")},
				{Object: mesh.ObjectName{Namespace: "bank", Name: "v"}, Hosts: []mesh.Host{"reviews.shop.svc.cluster.local"}, Source: []byte("foreign")},
				{Object: mesh.ObjectName{Namespace: "shop", Name: "w"}, Hosts: []mesh.Host{"example.com"}, Source: []byte("other host")},
			},
			DestinationRules: []*mesh.DestinationRule{
				{Object: mesh.ObjectName{Namespace: "shop", Name: "d"}, Host: "reviews.shop.svc.clusterset.local", Source: []byte("d")},
			},
		},
		Workloads: map[mesh.WorkloadName]*mesh.Workload{
			{Namespace: "shop", Name: "1"}: workload("shop", "1", "reviews", "reader"),
			{Namespace: "shop", Name: "2"}: workload("shop", "2", "reviews", "admin"),
			{Namespace: "bank", Name: "3"}: workload("bank", "3", "reviews", "thief"),
		},
		Slots: map[mesh.ServiceName][]mesh.SlotPods{
			name("shop", "reviews"): {{Slot: mesh.Slot{Index: 1, Healthy: 1, Total: 1}}, {Slot: mesh.Slot{Index: 0, Healthy: 1, Total: 1}}},
		},
	}
	got, findings := Export(View{Snapshot: s, Identities: map[mesh.ServiceName][]string{name("shop", "empty"): {"shop/last"}}})
	ports := []mesh.Port{{Name: "http", Number: 80, Protocol: mesh.HTTP}}
	want := []*mesh.ExportedService{
		{Name: name("shop", "empty"), Ports: ports, Identities: []string{"shop/last"}},
		{
			Name: name("shop", "reviews"), Ports: ports, Identities: []string{"shop/admin", "shop/reader"},
			Slots: []mesh.Slot{{Index: 0, Healthy: 1, Total: 1}, {Index: 1, Healthy: 1, Total: 1}},
			To:    []mesh.ClusterName{"east", "north"}, VirtualServices: [][]byte{[]byte("v")}, DestinationRules: [][]byte{[]byte("d")},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("export differs (-want +got):\n%s", diff)
	}
	var codes []string
	for _, f := range findings {
		codes = append(codes, f.Code+" "+f.Object)
	}
	if diff := cmp.Diff([]string{"export_not_granted Service bank/ledger", "export_invalid Service shop/broken"}, codes); diff != "" {
		t.Errorf("findings differ (-want +got):\n%s", diff)
	}
	if got := Identities(got); len(got) != 2 {
		t.Errorf("identities remembered = %v, want those of both services", got)
	}
	if services, findings := Export(View{Snapshot: &mesh.Snapshot{}}); services != nil || findings != nil {
		t.Errorf("in no federation: %v, %v; want nothing", services, findings)
	}
}

func TestExportFitsOneMessage(t *testing.T) {
	w := newWorld(t)
	s := &mesh.Snapshot{
		Trust:  &mesh.Trust{Self: west, Members: []mesh.Member{{Name: west, Namespaces: []string{"shop"}}}},
		Config: &mesh.Config{Services: map[mesh.ServiceName]*mesh.Service{}},
	}
	for i := range 300 {
		name := mesh.ServiceName{Namespace: "shop", Name: fmt.Sprintf("s%d", i)}
		s.Config.Services[name] = &mesh.Service{Name: name, Ports: []mesh.Port{{Number: 80, Protocol: mesh.HTTP}}, Export: &mesh.Export{}}
		s.Config.DestinationRules = append(s.Config.DestinationRules, &mesh.DestinationRule{
			Object: mesh.ObjectName{Namespace: "shop"}, Host: name.LocalHost(), Source: make([]byte, MaxRouteBytes),
		})
	}
	services, findings := Export(View{Snapshot: s})
	if len(services)+len(findings) != 300 || len(findings) == 0 || findings[0].Code != "export_too_many" {
		t.Fatalf("%d services and %d findings of 300", len(services), len(findings))
	}
	h := w.sign(t, 1, 1, services...)
	raw, err := Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckSnapshot(raw); err != nil {
		t.Errorf("what is left does not fit: %v", err)
	}
}

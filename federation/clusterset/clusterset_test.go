package clusterset

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/mesh"
)

func TestMerge(t *testing.T) {
	name := mesh.ServiceName{Namespace: "shop", Name: "pd"}
	part := func(c mesh.ClusterName, served bool, ports ...mesh.Port) Part {
		return Part{Cluster: c, Served: served, Remote: &mesh.ExportedService{Name: name, Ports: ports}}
	}
	http := mesh.Port{Name: "http", Number: 80, Protocol: mesh.HTTP}
	raw := mesh.Port{Name: "raw", Number: 80, Protocol: mesh.TCP}
	other := mesh.Port{Name: "admin", Number: 81, Protocol: mesh.HTTP}
	type served map[mesh.ClusterName][]uint32
	tests := []struct {
		why       string
		parts     []Part
		owner     mesh.ClusterName
		ports     []mesh.Port
		served    served
		conflicts []mesh.Conflict
	}{
		{"one exporter", []Part{part("west", true, http)}, "west", []mesh.Port{http}, served{"west": {80}}, nil},
		{"the first in document order decides", []Part{part("west", true, http), part("north", true, raw)}, "west",
			[]mesh.Port{http}, served{"west": {80}, "north": nil}, []mesh.Conflict{{Cluster: "north", Port: 80, Protocol: mesh.TCP, OwnerProtocol: mesh.HTTP}}},
		{"an export that never had endpoints does not", []Part{part("west", false, http), part("north", true, raw)}, "north",
			[]mesh.Port{raw}, served{"west": nil, "north": {80}}, []mesh.Conflict{{Cluster: "west", Port: 80, Protocol: mesh.HTTP, OwnerProtocol: mesh.TCP}}},
		{"nobody ever had endpoints: the first", []Part{part("west", false, http), part("north", false, raw)}, "west",
			[]mesh.Port{http}, served{"west": {80}, "north": nil}, []mesh.Conflict{{Cluster: "north", Port: 80, Protocol: mesh.TCP, OwnerProtocol: mesh.HTTP}}},
		{"ports of all are joined, by number", []Part{part("west", true, other), part("north", true, http, other)}, "west",
			[]mesh.Port{http, other}, served{"west": {81}, "north": {80, 81}}, nil},
		{"a port that cannot be is nobody's", []Part{part("west", true, http, mesh.Port{Number: 70000, Protocol: mesh.HTTP})}, "west",
			[]mesh.Port{http}, served{"west": {80}}, nil},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			got := Merge(name, test.parts)
			by := served{}
			for _, s := range got.Exporters {
				by[s.Cluster] = s.Ports
			}
			if got.Owner != test.owner || cmp.Diff(test.ports, got.Ports) != "" || cmp.Diff(test.served, by) != "" || cmp.Diff(test.conflicts, got.Conflicts) != "" {
				t.Errorf("got owner %s, ports %v, served %v, conflicts %v\nwant %s, %v, %v, %v", got.Owner, got.Ports, by, got.Conflicts,
					test.owner, test.ports, test.served, test.conflicts)
			}
		})
	}
	if Merge(name, nil) != nil {
		t.Error("an import without an exporter")
	}
}

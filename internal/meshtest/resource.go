package meshtest

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// ClusterName is the name that clusters and load assignments of a host's port have.
func ClusterName(h mesh.Host, port uint32) string { return fmt.Sprintf("outbound|%d||%s", port, h) }

// Body reads one resource of a state; false: it has none of that name. Bytes that are no such message panic: no control
// plane of ours sends any.
func Body[M any, P interface {
	*M
	proto.Message
}](s xds.State, typeURL, name string) (P, bool) {
	r, ok := s.Get(typeURL, name)
	if !ok {
		return nil, false
	}
	m := P(new(M))
	if err := r.Body.UnmarshalTo(m); err != nil {
		panic(fmt.Sprintf("%s %q: %v", typeURL, name, err))
	}
	return m, true
}

// EnvoyCluster is the cluster of that name; nil: none.
func EnvoyCluster(s xds.State, name string) *clusterv3.Cluster {
	m, _ := Body[clusterv3.Cluster](s, xds.ClusterType, name)
	return m
}

// Assignment is the load assignment of a host's port; nil: none.
func Assignment(s xds.State, h mesh.Host, port uint32) *endpointv3.ClusterLoadAssignment {
	m, _ := Body[endpointv3.ClusterLoadAssignment](s, xds.EndpointType, ClusterName(h, port))
	return m
}

// Endpoints are the addresses behind a host's port, of every priority, sorted: "ip:port", or the identifier of a slot.
func Endpoints(s xds.State, h mesh.Host, port uint32) []string {
	return Addresses(Assignment(s, h, port))
}

// Addresses are those of a load assignment, sorted.
func Addresses(a *endpointv3.ClusterLoadAssignment) []string {
	var out []string
	for _, locality := range a.GetEndpoints() {
		for _, e := range locality.GetLbEndpoints() {
			address := e.GetEndpoint().GetAddress()
			if slot := address.GetEnvoyInternalAddress(); slot != nil {
				out = append(out, slot.GetEndpointId())
				continue
			}
			out = append(out, fmt.Sprintf("%s:%d", address.GetSocketAddress().GetAddress(), address.GetSocketAddress().GetPortValue()))
		}
	}
	slices.Sort(out)
	return out
}

// Names is what the proxy's name server answers: addresses by host.
func Names(s xds.State) map[string]string {
	names := map[string]string{}
	for r := range s.All(xds.NameTableType) {
		var table workload.NameTable
		if err := r.Body.UnmarshalTo(&table); err != nil {
			panic(fmt.Sprintf("name table %q: %v", r.Name, err))
		}
		for host, address := range table.GetAddresses() {
			names[host] = address
		}
	}
	return names
}

// JSON is a message as golden files keep it: the same bytes for the same message.
func JSON(t testing.TB, m proto.Message) []byte {
	t.Helper()
	text, err := protojson.Marshal(m)
	if err != nil {
		t.Fatalf("encode %T: %v", m, err)
	}
	// Protobuf varies its blanks on purpose.
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatalf("encode %T: %v", m, err)
	}
	out, err := json.MarshalIndent(tree, "", "  ")
	if err != nil {
		t.Fatalf("encode %T: %v", m, err)
	}
	return append(out, '\n')
}

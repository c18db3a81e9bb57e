package translate_test

import (
	"testing"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/allocate"
	. "isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/mesh"
)

// TestParts: where one producer says something of connections and another does not, each has an Envoy cluster of its own,
// and calls come through a frozen and a killed gateway as if there were one.
func TestParts(t *testing.T) {
	l := newLab(t)
	west, north := l.cluster("west", podIP(1), podIP(2)), l.cluster("north", podIP(3))
	east := l.cluster("east")
	east.Remote["west"], east.Remote["north"] = exported(west), exported(north)
	service := east.Remote["west"].Services[reviews]
	service.DestinationRules = [][]byte{[]byte(`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"r","namespace":"shop"},
		"spec":{"host":"reviews","trafficPolicy":{"connectionPool":{"tcp":{"maxConnections":8},"http":{"http1MaxPendingRequests":8}}}}}`)}
	service.Producer = config.Producer("west", service)
	var err error
	if east.VIPs, err = allocate.Addresses(nil, []mesh.Host{reviews.ClusterSetHost()}); err != nil {
		t.Fatal(err)
	}
	l.server(west, 0)
	l.server(west, 1)
	l.server(north, 0)
	l.gateway(west)
	stop, signal := l.gateway(north)
	ports := l.client(east)
	web, raw := ports[RouteName(reviews.ClusterSetHost(), 8080)], ports[RouteName(reviews.ClusterSetHost(), 7000)]
	l.answers(t, web, raw, ports[RouteName(reviews.ClusterSetHost(), 9090)])
	l.gatewayFaults(t, web, raw, stop, signal)
	client := l.proxies["client"]
	for part, least := range map[string]int{
		"cluster.part_north_outbound_8080_reviews_shop_clusterset.upstream_cx_total": 1,
		"cluster.part_west_outbound_8080_reviews_shop_clusterset.upstream_cx_total":  1,
	} {
		if n := client.stat(t, part); n < least {
			t.Errorf("%s is %d: requests did not go by the parts", part, n)
		}
	}
	t.Run("the producer's pool bounds calls to its own endpoints", func(t *testing.T) {
		if n := client.stat(t, "cluster.part_west_outbound_8080_reviews_shop_clusterset.circuit_breakers.default.remaining_cx"); n > 8 {
			t.Errorf("%d connections remain to west, want 8 at most", n)
		}
	})
}

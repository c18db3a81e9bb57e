package explain

import (
	"net/netip"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"isthmus.dev/isthmus/mesh"
)

func TestChainFor(t *testing.T) {
	l := parse(t, &listenerv3.Listener{}, `{"default_filter_chain":{"name":"default"},"filter_chains":[
		{"name":"range","filter_chain_match":{"prefix_ranges":[{"address_prefix":"240.240.0.0","prefix_len":12}]}},
		{"name":"host","filter_chain_match":{"prefix_ranges":[{"address_prefix":"240.240.0.7","prefix_len":32}]}},
		{"name":"tcp","filter_chain_match":{"destination_port":8080}},
		{"name":"http","filter_chain_match":{"destination_port":8080,"application_protocols":["h2"]}}]}`)
	for _, test := range []struct {
		why, to, want string
		offers        []string
	}{
		{"an address of a range", "240.241.0.1:80", "range", nil},
		{"the longer prefix wins", "240.240.0.7:80", "host", nil},
		{"the port counts before the address", "240.240.0.7:8080", "tcp", nil},
		{"what the client offers counts too", "10.0.0.1:8080", "http", []string{"h2"}},
		{"nothing else matches", "10.0.0.1:80", "default", []string{"h2"}},
	} {
		t.Run(test.why, func(t *testing.T) {
			if got := chainFor(l, netip.MustParseAddrPort(test.to), test.offers...).GetName(); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestLinked(t *testing.T) {
	for route, want := range map[string]Origin{
		"shop/reviews[2]": {Object: "VirtualService shop/reviews", Path: "spec.http[2]"},
		"shop/reviews[0] (unavailable: no service x)": {Object: "VirtualService shop/reviews", Path: "spec.http[0]"},
		"default":      {},
		"a-rules-name": {},
	} {
		if got, _ := (Linked{}).Route(mesh.Host("reviews"), 80, route); got != want {
			t.Errorf("%s: got %+v, want %+v", route, got, want)
		}
	}
}

func TestCandidates(t *testing.T) {
	for name, want := range map[string]string{
		"ratings": "ratings.shop.svc.cluster.local", "ratings.bank": "ratings.bank.svc.cluster.local",
		"ratings.bank.svc": "ratings.bank.svc.cluster.local", "ratings.bank.svc.clusterset.local": "ratings.bank.svc.clusterset.local", "a.b.c": "a.b.c",
	} {
		if got := candidates(name, "shop")[0]; got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

package xds

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestLoadKeepsLittle brings ten thousand resources of two types to a client that has just come, while some of them change
// and go. What the session keeps meanwhile is about one response of each type, however much there is.
func TestLoadKeepsLittle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{10, 47, 49, 500, 5000}).Draw(t, "resources")
		most := rapid.SampledFrom([]int{3, 100}).Draw(t, "of a response")
		below, above := State{}, State{}
		for _, typ := range []string{ClusterType, EndpointType} {
			put := map[string]Resource{}
			for i := range n {
				name := fmt.Sprintf("c%d", i)
				put[name] = res(typ, name, "1")
			}
			below = below.With(typ, put)
			above = above.With(typ, map[string]Resource{"c1": res(typ, "c1", "upper"), "c2": Hidden("c2")})
		}
		session, client := NewSession(Config{MaxResources: most, Authoritative: true}), NewClient(State{})
		client.Subscribe(ClusterType, Wildcard)
		client.Subscribe(EndpointType, Wildcard)
		queue := session.Update(Union(below, above))
		for _, req := range client.Connect() {
			queue = append(queue, session.Request(req)...)
		}
		changes := rapid.IntRange(0, 20).Draw(t, "changes")
		for i := 0; len(queue) > 0; i++ {
			resp := queue[0]
			queue = queue[1:]
			if err := client.Receive(resp); err != nil {
				t.Fatal(err)
			}
			req, _ := client.Ack(resp.TypeURL)
			queue = append(queue, session.Request(req)...)
			if i < changes {
				typ := rapid.SampledFrom([]string{ClusterType, EndpointType}).Draw(t, "type")
				name := fmt.Sprintf("c%d", rapid.IntRange(0, n+2).Draw(t, "name"))
				if rapid.Bool().Draw(t, "goes") {
					below = below.Apply(typ, nil, []string{name})
				} else {
					below = below.Apply(typ, []Resource{res(typ, name, fmt.Sprint(i+2))}, nil)
				}
				queue = append(queue, session.Update(Union(below, above))...)
			}
			// A leaf of the largest map has some ten; each change may be waiting as well. Endpoints lag behind their
			// clusters as far as the client lets them.
			clusters := session.subs[ClusterType]
			if kept, bound := len(clusters.dirty)+len(clusters.known.over), 4*most+150+2*changes; kept > bound {
				t.Fatalf("clusters: %d entries kept, at most %d wanted", kept, bound)
			}
		}
		for range 2 * LongestRequest {
			for queue = session.Tick(); len(queue) > 0; queue = queue[1:] {
				if err := client.Receive(queue[0]); err != nil {
					t.Fatal(err)
				}
				req, _ := client.Ack(queue[0].TypeURL)
				queue = append(queue, session.Request(req)...)
			}
		}
		for _, typ := range []string{ClusterType, EndpointType} {
			if diff := cmp.Diff(contents(Union(below, above), typ), contents(client.State(), typ)); diff != "" {
				t.Fatalf("%s of the client (-want +got):\n%s", typ, diff)
			}
			if kept := len(session.subs[typ].known.over); kept > 0 {
				t.Errorf("%s: %d entries kept at rest", typ, kept)
			}
		}
	})
}

func contents(s State, typeURL string) map[string]string {
	out := map[string]string{}
	for r := range s.All(typeURL) {
		out[r.Name] = string(r.Body.GetValue())
	}
	return out
}

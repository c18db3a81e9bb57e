package meshtest_test

import (
	"fmt"
	"testing"
	"time"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/meshtest"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// registryBound is the longest an endpoint change may take while the registry is ill: a hundred times and more what it
// takes, and half of what a save that hangs would hold it up.
const registryBound = time.Second

// TestRegistryIll: whatever is wrong with the registry, endpoint changes go on, though something waits to be written; when
// it is well again, what waited comes.
func TestRegistryIll(t *testing.T) {
	t.Parallel()
	for _, ill := range []struct {
		name, why string
		// until makes it ill; heal makes it well again, after what it does meanwhile.
		until, heal func(t *testing.T, r *meshtest.Registry)
	}{
		{"hangs", "a save that never returns must not hold up the owner of the state", func(_ *testing.T, r *meshtest.Registry) { r.Hang() }, nil},
		{"slow", "nor one that returns late, again and again", func(_ *testing.T, r *meshtest.Registry) { r.Slow(1500 * time.Millisecond) }, nil},
		{"read-only", "a save that fails at once is tried again, not all the time", func(_ *testing.T, r *meshtest.Registry) { r.ReadOnly() }, nil},
		{"gone", "nobody answers", func(_ *testing.T, r *meshtest.Registry) { r.Refuse() }, nil},
		{"compacted", "the watch is cut and what it missed is forgotten: all is listed again", func(_ *testing.T, r *meshtest.Registry) { r.Refuse() },
			func(t *testing.T, r *meshtest.Registry) {
				store, _ := r.Direct()
				for _, name := range []string{"meanwhile", "later"} {
					object := mesh.ObjectName{Kind: "Service", Namespace: "shop", Name: name}
					if _, err := store.Commit(t.Context(), config.Change{Name: object, JSON: []byte(service(name))}); err != nil {
						t.Fatal(err)
					}
				}
				r.Compact()
			}},
	} {
		t.Run(ill.name, func(t *testing.T) {
			t.Parallel()
			t.Log(ill.why)
			r := meshtest.StartRegistry(t)
			m := meshtest.Start(t, meshtest.Clusters("east", "west"), meshtest.Outside("east", r))
			one, two := m.Cluster("east").Run(review("reviews-1")), m.Cluster("east").Run(review("reviews-2"))
			m.Cluster("east").Export(reviews)
			caller := m.Cluster("east").Proxy("shop", "caller")
			both := has(local, "10.1.0.1:8080", "10.1.0.2:8080")
			caller.Wait("both", both)
			heard := m.Cluster("west").Proxy("shop", "caller")
			heard.Wait("east's export", func(s xds.State) bool { return len(meshtest.Endpoints(s, imported, 8080)) == 2 })

			ill.until(t, r)
			// Names of another cluster's need addresses, and an address is written before it is given.
			for i := range newNames {
				m.Cluster("west").Run(meshtest.Instance{Namespace: "shop", Name: news(i).Name + "-1", Service: news(i).Name, Export: true})
			}
			slowest, changes := time.Duration(0), 0
			for begun := time.Now(); changes < 20 || !knowsAll(m.Cluster("east")) && time.Since(begun) < 3*time.Second; changes += 2 {
				for _, change := range []struct {
					ready bool
					want  func(xds.State) bool
				}{{false, has(local, "10.1.0.1:8080")}, {true, both}} {
					begun := time.Now()
					two.Report(change.ready)
					caller.Within(registryBound, fmt.Sprintf("change %d, ready %t, while the registry is ill (%s)", changes, change.ready, ill.name), change.want)
					slowest = max(slowest, time.Since(begun))
				}
			}
			t.Logf("the slowest of %d changes took %s", changes, slowest)

			if ill.heal != nil {
				ill.heal(t, r)
			}
			r.Heal()
			for i := range newNames {
				host := news(i).ClusterSetHost()
				caller.Wait("the import that waited for its address", func(s xds.State) bool {
					return len(meshtest.Endpoints(s, host, 8080)) == 1 && meshtest.Names(s)[string(host)] != ""
				})
			}
			if ill.name == "compacted" {
				caller.Wait("what was applied meanwhile", func(s xds.State) bool {
					return meshtest.Names(s)["meanwhile.shop.svc.cluster.local"] != ""
				})
			}
			one.Report(false)
			caller.Wait("changes after it", has(local, "10.1.0.2:8080"))
		})
	}
}

// newNames is how many names come while the registry is ill: more than one save is needed for them.
const newNames = 5

func news(i int) mesh.ServiceName {
	return mesh.ServiceName{Namespace: "shop", Name: fmt.Sprintf("news%d", i)}
}

// knowsAll tells whether a control plane has heard of all of them.
func knowsAll(c *meshtest.Cluster) bool {
	for i := range newNames {
		if !c.Knows(news(i), "west") {
			return false
		}
	}
	return true
}

// service is a Service of the namespace shop.
func service(name string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":%q,"namespace":"shop"},`+
		`"spec":{"selector":{"app":%q},"ports":[{"name":"http","port":8080,"appProtocol":"http"}]}}`, name, name)
}

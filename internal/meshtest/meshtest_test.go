package meshtest_test

import (
	"crypto/tls"
	"errors"
	"slices"
	"testing"

	"isthmus.dev/isthmus/internal/golden"
	"isthmus.dev/isthmus/internal/meshtest"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

var (
	reviews  = mesh.ServiceName{Namespace: "shop", Name: "reviews"}
	local    = reviews.LocalHost()
	imported = reviews.ClusterSetHost()
)

func review(name string) meshtest.Instance {
	return meshtest.Instance{Namespace: "shop", Name: name, Service: "reviews", Zone: "a", Address: "10.1.0." + name[len(name)-1:]}
}

// has tells whether a host's port has exactly these endpoints.
func has(h mesh.Host, want ...string) func(xds.State) bool {
	return func(s xds.State) bool { return slices.Equal(meshtest.Endpoints(s, h, 8080), want) }
}

// TestEndpoint: what an application's health changes reaches a proxy as one load assignment and nothing else.
func TestEndpoint(t *testing.T) {
	t.Parallel()
	east := meshtest.Start(t, meshtest.Clusters("east")).Cluster("east")
	one, two := east.Run(review("reviews-1")), east.Run(review("reviews-2"))
	caller := east.Proxy("other", "caller")
	both := has(local, "10.1.0.1:8080", "10.1.0.2:8080")
	caller.Wait("both, by name", func(s xds.State) bool { return both(s) && meshtest.Names(s)[string(local)] != "" })
	caller.Synced()
	before := len(caller.Received().Resources())

	two.Report(false)
	state := caller.Wait("one is out", has(local, "10.1.0.1:8080"))
	want := []string{"ClusterLoadAssignment " + meshtest.ClusterName(local, 8080)}
	if got := caller.Received().Resources()[before:]; !slices.Equal(got, want) {
		t.Errorf("a change of one endpoint brought %q, want %q", got, want)
	}
	golden.Compare(t, "testdata/assignment.json", meshtest.JSON(t, meshtest.Assignment(state, local, 8080)))
	if c := meshtest.EnvoyCluster(state, meshtest.ClusterName(local, 8080)); c == nil {
		t.Error("no cluster stands before the endpoints")
	}

	two.Report(true)
	caller.Wait("it is back", both)
	two.Close()
	one.Wait("its agent is gone", has(local, "10.1.0.1:8080"))
}

// TestJoin: a control plane that is alone serves nobody; after a join it does.
func TestJoin(t *testing.T) {
	t.Parallel()
	m := meshtest.Start(t, meshtest.Clusters("east"), meshtest.Alone("west"))
	if s := m.Cluster("west").Status(); s.GetReady() || s.GetRole() != "" {
		t.Errorf("before the join: %v", s)
	}
	joined := m.Join("west")
	if joined.GetCluster() != "west" || joined.GetFederation() != string(meshtest.Federation) {
		t.Errorf("joined: %v", joined)
	}
	if s := m.Cluster("west").Status(); !s.GetReady() || s.GetRole() != "member" {
		t.Errorf("after the join: %v", s)
	}
	m.Cluster("west").Proxy("shop", "caller").Wait("its listeners", func(s xds.State) bool { return s.Len(xds.ListenerType) > 0 })
}

// TestImport: an export of one cluster is an endpoint, with an address and a name, at the proxies of the other.
func TestImport(t *testing.T) {
	t.Parallel()
	m := meshtest.Start(t, meshtest.Clusters("east", "west"))
	caller := m.Cluster("east").Proxy("shop", "caller")
	caller.Wait("anything", func(s xds.State) bool { return s.Len(xds.ListenerType) > 0 })

	server := m.Cluster("west").Run(review("reviews-1"))
	m.Cluster("west").Export(reviews)
	slots := func(n int) func(xds.State) bool {
		return func(s xds.State) bool {
			return len(meshtest.Endpoints(s, imported, 8080)) == n && meshtest.Names(s)[string(imported)] != ""
		}
	}
	caller.Wait("a slot of west", slots(1))
	server.Report(false)
	caller.Wait("the slot is empty", slots(0))
	server.Report(true)
	caller.Wait("the slot is back", slots(1))
}

// TestRestart: a control plane that comes back gives the addresses it gave before, and tells a proxy that is current
// nothing but what has changed since.
func TestRestart(t *testing.T) {
	t.Parallel()
	east := meshtest.Start(t, meshtest.Clusters("east")).Cluster("east")
	one, two := east.Run(review("reviews-1")), east.Run(review("reviews-2"))
	caller := east.Proxy("shop", "caller")
	both := has(local, "10.1.0.1:8080", "10.1.0.2:8080")
	caller.Wait("both, by name", func(s xds.State) bool { return both(s) && meshtest.Names(s)[string(local)] != "" })
	before := caller.Synced()

	east.Restart()
	two.Report(false)
	after := caller.Wait("one is out", has(local, "10.1.0.1:8080"))
	for _, typeURL := range meshtest.Types {
		if typeURL != xds.EndpointType && before.Version(typeURL) != after.Version(typeURL) {
			t.Errorf("%s: version %s before, %s after", typeURL, before.Version(typeURL), after.Version(typeURL))
		}
	}
	if was, is := meshtest.Names(before)[string(local)], meshtest.Names(after)[string(local)]; was == "" || was != is {
		t.Errorf("address %q before, %q after", was, is)
	}
	stream := caller.Received()
	if want := []string{"ClusterLoadAssignment " + meshtest.ClusterName(local, 8080)}; stream.Stream < 2 || !slices.Equal(stream.Resources(), want) {
		t.Errorf("stream %d brought %q, want %q of a second one", stream.Stream, stream.Resources(), want)
	}
	one.Report(true)
}

// TestSyncedWaits: what is not acknowledged is not synced. The state that Synced gives is the one the control plane has.
func TestSyncedWaits(t *testing.T) {
	t.Parallel()
	east := meshtest.Start(t, meshtest.Clusters("east")).Cluster("east")
	caller := east.Proxy("shop", "caller")
	east.Apply(`
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 8080, appProtocol: http}]
`)
	name := meshtest.ClusterName(local, 8080)
	caller.Wait("the service", func(s xds.State) bool { return meshtest.EnvoyCluster(s, name) != nil })
	if s := caller.Synced(); meshtest.EnvoyCluster(s, name) == nil || s.Len(xds.ListenerType) == 0 {
		t.Error("synced without what was there before")
	}
	east.Delete("Service", "shop", "reviews")
	caller.Wait("it is gone", func(s xds.State) bool {
		return meshtest.EnvoyCluster(s, name) == nil && meshtest.Names(s)[string(local)] == ""
	})
}

// TestGateway: the forwarder passes connections on by their server name alone; a name that is not the control plane's ends.
func TestGateway(t *testing.T) {
	t.Parallel()
	east := meshtest.Start(t, meshtest.Clusters("east")).Cluster("east")
	for name, want := range map[string]bool{
		mesh.FederationSNI("east", meshtest.Federation): true, mesh.FederationSNI("west", meshtest.Federation): false, "": false,
	} {
		served := false
		_, err := tls.Dial("tcp", east.Gateway(), &tls.Config{
			ServerName: name, InsecureSkipVerify: true, NextProtos: []string{mesh.ALPNSync}, MinVersion: tls.VersionTLS13,
			VerifyConnection: func(tls.ConnectionState) error { served = true; return errSeen },
		})
		if served != want || err == nil {
			t.Errorf("server name %q: served %t (%v), want %t", name, served, err, want)
		}
	}
}

// errSeen ends a handshake when the server has shown its certificate.
var errSeen = errors.New("seen")

// TestKeep: a proxy that keeps some bodies only has the names and versions that one has which keeps all, and those bodies.
func TestKeep(t *testing.T) {
	t.Parallel()
	east := meshtest.Start(t, meshtest.Clusters("east")).Cluster("east")
	east.Run(review("reviews-1"))
	all := east.Proxy("other", "caller")
	some, err := east.Connect(t.Context(), meshtest.ProxyConfig{Namespace: "other", Instance: "second", Keep: func(typeURL, _ string) bool { return typeURL == xds.EndpointType }})
	if err != nil {
		t.Fatal(err)
	}
	named := func(s xds.State) bool { return meshtest.Names(s)[string(local)] != "" }
	all.Wait("the name", named)
	some.Wait("as many names", func(s xds.State) bool { return s.Len(xds.NameTableType) == all.State().Len(xds.NameTableType) })
	want, got := all.Synced(), some.Synced()
	shared := func(typeURL string) bool { return typeURL != xds.SecretType }
	for _, typeURL := range meshtest.Types {
		if changed, removed := xds.Diff(want, got, typeURL); shared(typeURL) && len(changed)+len(removed) > 0 {
			t.Errorf("%s: %q and %q differ", typeURL, changed, removed)
		}
		for r := range got.All(typeURL) {
			if kept := len(r.Body.GetValue()) > 0; kept != (typeURL == xds.EndpointType) {
				t.Errorf("%s %s: body kept: %t", typeURL, r.Name, kept)
			}
		}
	}
	if !has(local, "10.1.0.1:8080")(got) {
		t.Error("the endpoints are others")
	}
}

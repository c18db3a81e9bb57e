package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// put writes one object and gives its new version.
func put(ctx context.Context, store *Store, name mesh.ObjectName, json []byte, expect int64) (int64, error) {
	versions, err := store.Commit(ctx, config.Change{Name: name, JSON: json, Expect: expect})
	if err != nil {
		return 0, err
	}
	return versions[0], nil
}

func TestStore(t *testing.T) {
	store := NewStore(serve(t, filepath.Join(t.TempDir(), "etcd")).Client())
	ctx := t.Context()
	commit := func(changes ...config.Change) int64 {
		t.Helper()
		versions, err := store.Commit(ctx, changes...)
		if err != nil {
			t.Fatal(err)
		}
		if len(versions) != len(changes) || versions[0] != versions[len(versions)-1] {
			t.Fatalf("%d changes of one transaction have versions %v", len(changes), versions)
		}
		return versions[0]
	}
	a, b := object("a"), object("b")
	first := commit(config.Change{Name: a, JSON: []byte(`{}`)}, config.Change{Name: b, JSON: []byte(`{"b":1}`)})
	if got, err := store.Get(ctx, b); err != nil || got.Version != first || string(got.JSON) != `{"b":1}` {
		t.Errorf("Get: %+v, %v; want version %d", got, err, first)
	}
	refused := []struct {
		why string
		ops []config.Change
		err config.ConflictError
	}{
		{"exists already", []config.Change{{Name: object("c"), JSON: []byte("{}")}, {Name: a, JSON: []byte("{}")}}, config.ConflictError{Object: a, Have: first}},
		{"changed meanwhile", []config.Change{{Name: a, JSON: []byte("{}"), Expect: first - 1}}, config.ConflictError{Object: a, Want: first - 1, Have: first}},
		{"deleted meanwhile", []config.Change{{Name: a, Expect: first}, {Name: object("c"), JSON: []byte("{}"), Expect: 7}}, config.ConflictError{Object: object("c"), Want: 7}},
	}
	for _, test := range refused {
		_, err := store.Commit(ctx, test.ops...)
		if conflict, ok := errors.AsType[*config.ConflictError](err); !ok || *conflict != test.err {
			t.Errorf("%s: got %v, want %v", test.why, err, &test.err)
		}
	}
	if listed, revision, err := store.List(ctx, config.Query{Kind: "Service"}); err != nil || len(listed) != 2 || revision != first {
		t.Errorf("after refused transactions: %d objects at %d, %v; want the 2 at %d", len(listed), revision, err, first)
	}
	second := commit(config.Change{Name: a, JSON: []byte(`{"a":2}`), Expect: first}, config.Change{Name: b, Expect: config.AnyVersion})
	if second <= first {
		t.Errorf("version %d after %d", second, first)
	}
	if err := store.Delete(ctx, b, config.AnyVersion); !errors.Is(err, config.ErrNotFound) {
		t.Errorf("delete twice: %v", err)
	}
	if err := store.Delete(ctx, a, first); err == nil {
		t.Error("deleted an object of another version")
	}
	if err := store.Delete(ctx, a, second); err != nil {
		t.Error(err)
	}
	watchFrom(t, store, first-1)
}

// watchFrom expects the changes TestStore made.
func watchFrom(t *testing.T, store *Store, after int64) {
	done := errors.New("done")
	var got []string
	err := store.Watch(t.Context(), config.Query{Kind: "Service"}, after, func(e config.Event) error {
		if got = append(got, fmt.Sprintf("%s=%s deleted=%v", e.Name.Name, e.JSON, e.Deleted)); len(got) == 5 {
			return done
		}
		return nil
	})
	want := []string{`a={} deleted=false`, `b={"b":1} deleted=false`, `a={"a":2} deleted=false`, `b= deleted=true`, `a= deleted=true`}
	if diff := cmp.Diff(want, got); diff != "" || !errors.Is(err, done) {
		t.Errorf("watch: %v, -want +got:\n%s", err, diff)
	}
}

func TestBounds(t *testing.T) {
	store := NewStore(serve(t, filepath.Join(t.TempDir(), "etcd")).Client())
	many := func(n, size int) []config.Change {
		var ops []config.Change
		for i := range n {
			ops = append(ops, config.Change{Name: object(fmt.Sprintf("s%d", i)), JSON: make([]byte, size), Expect: config.AnyVersion})
		}
		return ops
	}
	tests := []struct {
		why  string
		ops  []config.Change
		code string
	}{
		{"as many as allowed, far over etcd's default", many(MaxTxnOps, 100), ""},
		{"one more", many(MaxTxnOps+1, 1), "too_many_objects"},
		{"as large as allowed", many(1, maxTxnBytes-200), ""},
		{"larger", many(2, maxTxnBytes/2), "too_large"},
	}
	for _, test := range tests {
		_, err := store.Commit(t.Context(), test.ops...)
		if (err == nil) != (test.code == "") || hint.CodeOf(err) != test.code || (err != nil && hint.Of(err) == "") {
			t.Errorf("%s: error %v, code %q; want code %q", test.why, err, hint.CodeOf(err), test.code)
		}
	}
	for _, name := range []mesh.ObjectName{{}, {Kind: "Service", Namespace: "a/b", Name: "c"}, {Kind: "Service", Namespace: "a", Name: strings.Repeat("x", 300)}} {
		if _, err := put(t.Context(), store, name, []byte("{}"), config.AnyVersion); err == nil {
			t.Errorf("stored under %q", name)
		}
	}
	if _, err := store.Commit(t.Context(), append(many(1, 1), many(1, 1)...)...); err == nil {
		t.Error("one object twice in one transaction")
	}
}

func TestAllocated(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	want := Allocated{
		VIPs: map[mesh.Host]netip.Addr{},
		Slots: map[mesh.ServiceName][]mesh.SlotPods{{Namespace: "shop", Name: "ratings"}: {
			{Slot: mesh.Slot{Index: 0, Generation: 3}, Pods: []mesh.WorkloadName{{Namespace: "shop", Name: "ratings-1"}}},
			{Slot: mesh.Slot{Index: 4, Generation: 1}},
		}},
	}
	for i := range 250 {
		want.VIPs[mesh.Host(fmt.Sprintf("s%d.shop.svc.cluster.local", i))] = netip.AddrFrom4([4]byte{240, 240, 1, byte(i)})
	}
	server, err := Embedded(t.Context(), EmbeddedConfig{Dir: dir, RunDir: shortDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	gone := map[mesh.ServiceName][]mesh.SlotPods{{Namespace: "shop", Name: "gone"}: want.Slots[mesh.ServiceName{Namespace: "shop", Name: "ratings"}]}
	for _, a := range []Allocated{want, {Slots: gone}, {Slots: map[mesh.ServiceName][]mesh.SlotPods{{Namespace: "shop", Name: "gone"}: nil}}} {
		if err := NewStore(server.Client()).SaveAllocated(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := NewStore(serve(t, dir).Client()).LoadAllocated(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("after a restart: -want +got:\n%s", diff)
	}
}

// source runs a source on store whose updates arrive on the channel, one batch each.
func source(t *testing.T, store *Store) <-chan []mesh.Update {
	t.Helper()
	batches := make(chan []mesh.Update)
	s := NewSource(SourceConfig{
		Store: store,
		Build: func(objects []config.Stored) *mesh.Config {
			c := &mesh.Config{}
			for _, o := range objects {
				c.Findings = append(c.Findings, mesh.Finding{Object: o.Name.String()})
			}
			return c
		},
		Workload: func(o config.Stored) (mesh.Workload, bool) {
			return mesh.Workload{ServiceAccount: string(o.JSON)}, string(o.JSON) != "bad"
		},
		Send: func(ctx context.Context, updates ...mesh.Update) error {
			select {
			case batches <- updates:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return batches
}

func TestSource(t *testing.T) {
	store := NewStore(serve(t, filepath.Join(t.TempDir(), "etcd")).Client())
	set := func(kind, name, json string) {
		t.Helper()
		if _, err := put(t.Context(), store, mesh.ObjectName{Kind: kind, Namespace: "shop", Name: name}, []byte(json), config.AnyVersion); err != nil {
			t.Fatal(err)
		}
	}
	workload := func(name, account string, ready bool) mesh.SetWorkload {
		return mesh.SetWorkload{Workload: mesh.Workload{Name: mesh.WorkloadName{Namespace: "shop", Name: name}, ServiceAccount: account, Ready: ready}}
	}
	section := func(objects ...string) mesh.SetConfig {
		c := &mesh.Config{}
		for _, o := range objects {
			c.Findings = append(c.Findings, mesh.Finding{Object: o})
		}
		return mesh.SetConfig{Config: c}
	}
	set("Service", "ratings", "{}")
	set(config.KindWorkloadEntry, "ratings-1", "sa")
	set(config.KindWorkloadEntry, "ratings-2", "bad")
	batches := source(t, store)
	expect := func(why string, want ...mesh.Update) {
		t.Helper()
		if diff := cmp.Diff(want, <-batches, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s: -want +got:\n%s", why, diff)
		}
	}
	expect("the first batch is whole", workload("ratings-1", "sa", true),
		section("Service shop/ratings"), mesh.Synced{Source: mesh.SourceRegistry})
	set(config.KindWorkloadEntry, "ratings-2", "sa")
	expect("a workload comes at once, not ready yet", workload("ratings-2", "sa", false))
	set("VirtualService", "ratings", "{}")
	expect("configuration is built anew", section("Service shop/ratings", "VirtualService shop/ratings"))
	if _, err := store.Commit(t.Context(), config.Change{Name: object("ratings"), Expect: config.AnyVersion},
		config.Change{Name: mesh.ObjectName{Kind: config.KindWorkloadEntry, Namespace: "shop", Name: "ratings-1"}, Expect: config.AnyVersion}); err != nil {
		t.Fatal(err)
	}
	expect("of one transaction the workload goes first", mesh.DeleteWorkload{Name: mesh.WorkloadName{Namespace: "shop", Name: "ratings-1"}})
	expect("then the configuration", section("VirtualService shop/ratings"))
	set(config.KindWorkloadEntry, "ratings-2", "bad")
	expect("a workload that cannot be used any more is withdrawn", mesh.DeleteWorkload{Name: mesh.WorkloadName{Namespace: "shop", Name: "ratings-2"}})
	if err := store.SaveAllocated(t.Context(), Allocated{VIPs: map[mesh.Host]netip.Addr{"a": netip.MustParseAddr("240.240.0.1")}}); err != nil {
		t.Fatal(err)
	}
}

// TestSourceListsAgain: after a gap in the history a source withdraws what is gone.
func TestSourceListsAgain(t *testing.T) {
	store := NewStore(serve(t, filepath.Join(t.TempDir(), "etcd")).Client())
	ctx := t.Context()
	name := mesh.ObjectName{Kind: config.KindWorkloadEntry, Namespace: "shop", Name: "ratings-1"}
	revision, err := put(ctx, store, name, []byte("sa"), config.Absent)
	if err != nil {
		t.Fatal(err)
	}
	var got []mesh.Update
	s := NewSource(SourceConfig{
		Store: store, Build: func([]config.Stored) *mesh.Config { return nil },
		Workload: func(config.Stored) (mesh.Workload, bool) { return mesh.Workload{}, true },
		Send:     func(_ context.Context, updates ...mesh.Update) error { got = append(got, updates...); return nil },
	})
	if _, err := s.list(ctx); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete(ctx, name, revision); err != nil {
		t.Fatal(err)
	}
	last, err := put(ctx, store, object("other"), []byte("{}"), config.Absent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.client.Compact(ctx, last); err != nil {
		t.Fatal(err)
	}
	if err := store.Watch(ctx, config.Query{}, revision, func(config.Event) error { return nil }); !errors.Is(err, config.ErrCompacted) {
		t.Fatalf("a watch from before the compaction ends with %v, want config.ErrCompacted", err)
	}
	got = nil
	if _, err := s.list(ctx); err != nil {
		t.Fatal(err)
	}
	want := []mesh.Update{mesh.DeleteWorkload{Name: mesh.WorkloadName{Namespace: "shop", Name: "ratings-1"}}, mesh.SetConfig{}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestExternalNeedsMTLS(t *testing.T) {
	good := ExternalConfig{Endpoints: []string{"https://10.0.0.1:2379"}, Cert: "c", Key: "k", CA: "a"}
	clear, noKey, none := good, good, good
	clear.Endpoints = []string{"http://10.0.0.1:2379"}
	noKey.Key = ""
	none.Endpoints = nil
	for _, test := range []struct {
		why      string
		external ExternalConfig
		ok       bool
	}{{"all given", good, true}, {"clear text", clear, false}, {"no key", noKey, false}, {"no endpoint", none, false}} {
		if err := test.external.Validate(); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.why, err)
		}
	}
	if _, err := External(t.Context(), good); err == nil || hint.Of(err) == "" {
		t.Errorf("files that do not exist: %v", err)
	}
}

func TestDecodeWorkload(t *testing.T) {
	const head = `{"apiVersion":"networking.istio.io/v1","kind":"WorkloadEntry","metadata":{"name":"a","namespace":"shop","annotations":{"isthmus.dev/proxy":`
	name := mesh.ObjectName{Kind: config.KindWorkloadEntry, Namespace: "shop", Name: "a"}
	tests := []struct {
		why, json string
		ok        bool
	}{
		{"a sidecar's", head + `"sidecar"}},"spec":{"address":"10.0.0.1","locality":"eu/eu-a"}}`, true},
		{"a gateway's entry is no workload", head + `"gateway"}},"spec":{}}`, false},
		{"broken", `{`, false},
	}
	for _, test := range tests {
		if w, ok := DecodeWorkload(config.Stored{Name: name, JSON: []byte(test.json)}); ok != test.ok || (ok && w.Zone != "eu-a") {
			t.Errorf("%s: %+v, %v", test.why, w, ok)
		}
	}
	built := BuildConfig([]config.Stored{{Name: object("ratings"), JSON: []byte(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"ratings","namespace":"shop"},"spec":{"ports":[{"port":8080}]}}`)}})
	if len(built.Services) != 1 || len(built.Findings) != 0 {
		t.Errorf("%+v", built)
	}
}

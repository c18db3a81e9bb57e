package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	clientv3 "go.etcd.io/etcd/client/v3"

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

// TestRead: objects are read by their names, more than an external server takes at once too; what is not there is left out.
func TestRead(t *testing.T) {
	store := NewStore(serve(t, filepath.Join(t.TempDir(), "etcd")).Client())
	var names []mesh.ObjectName
	var changes []config.Change
	for i := range 2*readSize + 3 {
		names = append(names, object(fmt.Sprintf("s%d", i)))
		if i%2 == 0 {
			changes = append(changes, config.Change{Name: names[i], JSON: fmt.Appendf(nil, "%d", i), Expect: config.Absent})
		}
	}
	versions, err := store.Commit(t.Context(), changes...)
	if err != nil {
		t.Fatal(err)
	}
	got, err := store.Read(t.Context(), names...)
	if err != nil || len(got) != len(changes) {
		t.Fatalf("read %d objects, %v; want %d", len(got), err, len(changes))
	}
	for i, o := range got {
		if o.Name != changes[i].Name || string(o.JSON) != string(changes[i].JSON) || o.Version != versions[i] {
			t.Errorf("object %d is %+v, want %+v of version %d", i, o, changes[i], versions[i])
		}
	}
	if none, err := store.Read(t.Context()); err != nil || len(none) != 0 {
		t.Errorf("no names: %v, %v", none, err)
	}
	if _, err := store.Read(t.Context(), mesh.ObjectName{Kind: "a/b"}); err == nil {
		t.Error("a name that cannot be stored was read")
	}
}

func TestAllocated(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	ratings, gone := mesh.ServiceName{Namespace: "shop", Name: "ratings"}, mesh.ServiceName{Namespace: "shop", Name: "gone"}
	placement := mesh.Placement{Served: true, Slots: []mesh.SlotPods{
		{Slot: mesh.Slot{Index: 0, Generation: 3}, Pods: []mesh.WorkloadName{{Namespace: "shop", Name: "ratings-1"}}},
		{Slot: mesh.Slot{Index: 4, Generation: 1}},
	}}
	server, err := Embedded(t.Context(), EmbeddedConfig{Dir: dir, RunDir: shortDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	store := NewStore(server.Client())
	want := mesh.Allocated{VIPs: map[mesh.Host]netip.Addr{}, Slots: map[mesh.ServiceName]mesh.Placement{ratings: placement}}
	version := int64(0)
	commit := func(part mesh.Allocated) {
		t.Helper()
		next, err := store.CommitAllocated(t.Context(), version, part)
		if err != nil {
			t.Fatal(err)
		}
		if next <= version {
			t.Errorf("version %d after %d", next, version)
		}
		version = next
	}
	for i := range 3 {
		part := mesh.Allocated{VIPs: map[mesh.Host]netip.Addr{}}
		for k := range 80 {
			part.VIPs[mesh.Host(fmt.Sprintf("s%d-%d.shop.svc.cluster.local", i, k))] = netip.AddrFrom4([4]byte{240, 240, byte(i), byte(k)})
		}
		maps.Copy(want.VIPs, part.VIPs)
		commit(part)
	}
	commit(mesh.Allocated{Slots: map[mesh.ServiceName]mesh.Placement{ratings: placement, gone: placement}, VIPs: map[mesh.Host]netip.Addr{"back": netip.MustParseAddr("240.240.9.9")}})
	commit(mesh.Allocated{Slots: map[mesh.ServiceName]mesh.Placement{gone: {}}, VIPs: map[mesh.Host]netip.Addr{"back": {}}})
	if _, err := store.CommitAllocated(t.Context(), version-1, want); !errors.Is(err, mesh.ErrAllocatedChanged) {
		t.Errorf("a write on top of an old version: %v, want ErrAllocatedChanged", err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	store = NewStore(serve(t, dir).Client())
	got, read, err := store.LoadAllocated(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || read != version {
		t.Errorf("after a restart: version %d, want %d; -want +got:\n%s", read, version, diff)
	}
	// The form of before there was Served.
	if _, err := store.client.Put(t.Context(), slotsAt+"shop/old", `[{"index":2,"generation":7,"pods":["a"]}]`); err != nil {
		t.Fatal(err)
	}
	got, _, err = store.LoadAllocated(t.Context())
	if old := got.Slots[mesh.ServiceName{Namespace: "shop", Name: "old"}]; err != nil || len(old.Slots) != 1 || old.Slots[0].Slot.Generation != 7 {
		t.Errorf("slots in the form of before: %+v, %v", old, err)
	}
}

// source runs a source on store whose updates arrive on the channel, one batch each.
func source(t *testing.T, store *Store) <-chan []mesh.Update {
	t.Helper()
	batches := make(chan []mesh.Update)
	s := NewSource(SourceConfig{
		Store: store,
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

// said names updates in short.
func said(updates []mesh.Update) []string {
	var out []string
	for _, u := range updates {
		switch u := u.(type) {
		case mesh.SetWorkload:
			out = append(out, fmt.Sprintf("workload %s %s ready=%v", u.Workload.Name, u.Workload.ServiceAccount, u.Workload.Ready))
		case mesh.DeleteWorkload:
			out = append(out, fmt.Sprintf("no workload %s", u.Name))
		case mesh.SetObject:
			out = append(out, fmt.Sprintf("%s %T, %d findings", u.Name, u.Value, len(u.Findings)))
		case mesh.Synced:
			out = append(out, "synced "+string(u.Source))
		}
	}
	return out
}

const (
	serviceJSON = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"ratings","namespace":"shop"},"spec":{"selector":{"app":"ratings"},"ports":[{"name":"http","port":80}]}}`
	exportJSON  = `{"apiVersion":"multicluster.x-k8s.io/v1beta1","kind":"ServiceExport","metadata":{"name":"ratings","namespace":"shop"}}`
)

func workloadJSON(name, account string) string {
	return fmt.Sprintf(`{"apiVersion":"networking.istio.io/v1","kind":"WorkloadEntry","metadata":{"name":%q,"namespace":"shop","annotations":{"isthmus.dev/proxy":"sidecar"}},"spec":{"address":"10.0.0.1","serviceAccount":%q}}`, name, account)
}

func TestSource(t *testing.T) {
	store := NewStore(serve(t, filepath.Join(t.TempDir(), "etcd")).Client())
	set := func(kind, name, json string) {
		t.Helper()
		if _, err := put(t.Context(), store, mesh.ObjectName{Kind: kind, Namespace: "shop", Name: name}, []byte(json), config.AnyVersion); err != nil {
			t.Fatal(err)
		}
	}
	set(config.KindService, "ratings", serviceJSON)
	set(config.KindWorkloadEntry, "ratings-1", workloadJSON("ratings-1", "sa"))
	set(config.KindWorkloadEntry, "ratings-2", "{}")
	batches := source(t, store)
	expect := func(why string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, said(<-batches)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", why, diff)
		}
	}
	expect("the first batch is whole", "Service shop/ratings *mesh.Service, 0 findings", "workload shop/ratings-1 sa ready=true",
		"WorkloadEntry shop/ratings-2 <nil>, 1 findings", "synced registry")
	set(config.KindWorkloadEntry, "ratings-2", workloadJSON("ratings-2", "sa"))
	expect("a workload comes at once, not ready yet", "workload shop/ratings-2 sa ready=false")
	expect("what was wrong with its object is so no more", "WorkloadEntry shop/ratings-2 <nil>, 0 findings")
	set(config.KindServiceExport, "ratings", exportJSON)
	expect("an object is compiled alone", "ServiceExport shop/ratings *mesh.Export, 0 findings")
	if _, err := store.Commit(t.Context(), config.Change{Name: object("ratings"), Expect: config.AnyVersion},
		config.Change{Name: mesh.ObjectName{Kind: config.KindWorkloadEntry, Namespace: "shop", Name: "ratings-1"}, Expect: config.AnyVersion}); err != nil {
		t.Fatal(err)
	}
	expect("of one transaction the workload goes first", "no workload shop/ratings-1")
	expect("then the configuration", "Service shop/ratings <nil>, 0 findings")
	set(config.KindWorkloadEntry, "ratings-2", "{}")
	expect("a workload that cannot be used any more is withdrawn", "no workload shop/ratings-2")
	expect("and its object says why", "WorkloadEntry shop/ratings-2 <nil>, 1 findings")
}

// TestSourceListsAgain: after a gap in the history a source tells what changed and withdraws what is gone, and nothing else.
func TestSourceListsAgain(t *testing.T) {
	store := NewStore(serve(t, filepath.Join(t.TempDir(), "etcd")).Client())
	ctx := t.Context()
	name := mesh.ObjectName{Kind: config.KindWorkloadEntry, Namespace: "shop", Name: "ratings-1"}
	if _, err := put(ctx, store, object("ratings"), []byte(serviceJSON), config.Absent); err != nil {
		t.Fatal(err)
	}
	revision, err := put(ctx, store, name, []byte(workloadJSON("ratings-1", "sa")), config.Absent)
	if err != nil {
		t.Fatal(err)
	}
	var got []mesh.Update
	s := NewSource(SourceConfig{
		Store: store,
		Send:  func(_ context.Context, updates ...mesh.Update) error { got = append(got, updates...); return nil },
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
	want := []string{"Service shop/other <nil>, 1 findings", "no workload shop/ratings-1"}
	if diff := cmp.Diff(want, said(got)); diff != "" {
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

// TestPages: a list that is read in parts shows one revision, whatever is written meanwhile; one whose revision is compacted
// before its end begins anew.
func TestPages(t *testing.T) {
	store := NewStore(serve(t, filepath.Join(t.TempDir(), "etcd")).Client())
	ctx := t.Context()
	var changes []config.Change
	for i := range 7 {
		changes = append(changes, config.Change{Name: object(fmt.Sprintf("s%d", i)), JSON: []byte("{}"), Expect: config.Absent})
	}
	versions, err := store.Commit(ctx, changes...)
	if err != nil {
		t.Fatal(err)
	}
	store.pageSize = 3
	// read reads all pages; between is called after the first.
	read := func(between func()) (pages [][]string, revision int64, err error) {
		revision, err = store.pages(ctx, config.Query{}, func(page []config.Stored) error {
			var names []string
			for _, object := range page {
				names = append(names, object.Name.Name+string(object.JSON))
			}
			if pages = append(pages, names); len(pages) == 1 {
				between()
			}
			return nil
		})
		return pages, revision, err
	}
	var last int64
	write := func(name string) {
		t.Helper()
		if last, err = put(ctx, store, object(name), []byte(`{"later":1}`), config.AnyVersion); err != nil {
			t.Fatal(err)
		}
	}
	pages, revision, err := read(func() { write("s1"); write("s3x"); write("s5") })
	want := [][]string{{"s0{}", "s1{}", "s2{}"}, {"s3{}", "s4{}", "s5{}"}, {"s6{}"}}
	if diff := cmp.Diff(want, pages); err != nil || diff != "" || revision != versions[0] {
		t.Errorf("revision %d, want %d, %v; -want +got:\n%s", revision, versions[0], err, diff)
	}
	compact := func() {
		write("s6")
		if _, err := store.client.Compact(ctx, last); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := read(compact); !errors.Is(err, config.ErrCompacted) {
		t.Errorf("the revision was compacted between two pages: %v, want config.ErrCompacted", err)
	}
	if all, _, err := store.List(ctx, config.Query{}); err != nil || len(all) != 8 {
		t.Errorf("a list of several pages: %d objects, %v; want 8", len(all), err)
	}
}

// TestSourceForgetsHalfAList: objects of a list that was not read to its end are told when it is read again.
func TestSourceForgetsHalfAList(t *testing.T) {
	store := NewStore(serve(t, filepath.Join(t.TempDir(), "etcd")).Client())
	ctx := t.Context()
	for _, name := range []string{"a", "b", "c"} {
		if _, err := put(ctx, store, object(name), []byte(serviceJSON), config.Absent); err != nil {
			t.Fatal(err)
		}
	}
	var got []mesh.Update
	s := NewSource(SourceConfig{
		Store: store,
		Send:  func(_ context.Context, updates ...mesh.Update) error { got = append(got, updates...); return nil },
	})
	store.pageSize = 2
	stopped, stop := context.WithCancel(ctx)
	client := store.client
	store.client = clientv3.NewCtxClient(stopped)
	store.client.KV = &stopAfter{KV: client.KV, stop: stop}
	if _, err := s.list(stopped); err == nil || len(got) > 0 {
		t.Fatalf("half a list: %v, %d updates; want an error and none", err, len(got))
	}
	store.client = client
	if _, err := s.list(ctx); err != nil {
		t.Fatal(err)
	}
	if want := 4; len(got) != want { // and Synced
		t.Errorf("%d updates, want %d: %q", len(got), want, said(got))
	}
}

// stopAfter stops after the first answer.
type stopAfter struct {
	clientv3.KV
	stop func()
}

func (s *stopAfter) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	defer s.stop()
	return s.KV.Get(ctx, key, opts...)
}

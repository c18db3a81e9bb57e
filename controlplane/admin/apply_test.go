package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// counting is a registry in memory that counts what is read of it.
type counting struct {
	Registry // what apply has no business with
	objects  map[mesh.ObjectName]config.Stored
	version  int64
	calls    int
	read     int // objects
}

func (c *counting) Read(_ context.Context, names ...mesh.ObjectName) (out []config.Stored, err error) {
	c.calls++
	for _, name := range names {
		if o, ok := c.objects[name]; ok {
			c.read++
			out = append(out, o)
		}
	}
	return out, nil
}

func (c *counting) Commit(_ context.Context, changes ...config.Change) (versions []int64, err error) {
	c.calls++
	c.version++
	for _, change := range changes {
		if have := c.objects[change.Name].Version; change.Expect != config.AnyVersion && change.Expect != have {
			return nil, &config.ConflictError{Object: change.Name, Want: change.Expect, Have: have}
		}
		c.objects[change.Name] = config.Stored{Name: change.Name, JSON: change.JSON, Version: c.version}
		versions = append(versions, c.version)
	}
	return versions, nil
}

// filled is a registry of n services, and the apply of it.
func filled(n int) (*counting, *objects) {
	c := &counting{objects: map[mesh.ObjectName]config.Stored{}}
	updates := []mesh.Update{mesh.SetTrust{Trust: member("shop").Trust}}
	for i := range n {
		name := mesh.ObjectName{Kind: config.KindService, Namespace: "shop", Name: fmt.Sprintf("s%d", i)}
		c.objects[name] = config.Stored{Name: name, Version: 1, JSON: fmt.Appendf(nil,
			`{"apiVersion":"v1","kind":"Service","metadata":{"name":%q,"namespace":"shop"},"spec":{"ports":[{"port":80}],"selector":{"app":"a"}}}`, name.Name)}
		value, _ := config.Compile(c.objects[name].Object())
		updates = append(updates, mesh.SetObject{Name: name, Value: value})
	}
	state := world.Folded{}.Apply(updates...)
	return c, &objects{config: Config{Registry: c, Snapshot: state.Snapshot, Folded: func() world.Folded { return state }}}
}

// one applies a Service and the export of another one that is there; the port makes it a change.
func one(tb testing.TB, s *objects, port int) {
	tb.Helper()
	yaml := fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: s1, namespace: shop}\nspec: {selector: {app: a}, ports: [{port: %d}]}\n---\n", port) +
		"apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: s2, namespace: shop}\n"
	response, err := s.Apply(context.Background(), &admin.ApplyRequest{Files: []*admin.File{{Name: "one.yaml", Yaml: []byte(yaml)}}})
	if err != nil || !response.GetApplied() || len(response.GetFindings()) > 0 {
		tb.Fatalf("apply: %v, %v", response, err)
	}
}

// work is what an apply of one object costs in a registry of n: objects that are read, calls, and allocations, in which every
// object that is parsed shows.
func work(tb testing.TB, n int) (read, calls int, allocations float64) {
	c, s := filled(n)
	port := 1000
	one(tb, s, port) // the export is there from now on
	c.read, c.calls = 0, 0
	one(tb, s, port+1)
	read, calls = c.read, c.calls
	allocations = testing.AllocsPerRun(20, func() {
		port++
		one(tb, s, 2000+port)
	})
	return read, calls, allocations
}

// TestApplyCostsWhatItNames: what an apply reads and parses does not depend on what else there is.
func TestApplyCostsWhatItNames(t *testing.T) {
	read, calls, allocations := work(t, 100)
	readMany, callsMany, allocationsMany := work(t, 10_000)
	t.Logf("100 objects: %d read in %d calls, %.0f allocations; 10,000: %d read in %d calls, %.0f allocations", read, calls, allocations, readMany, callsMany, allocationsMany)
	if read != 2 || readMany != 2 || calls != 2 || callsMany != 2 {
		t.Errorf("read %d and %d objects in %d and %d calls; want the two of the documents, in a read and a commit", read, readMany, calls, callsMany)
	}
	if allocationsMany > 1.05*allocations {
		t.Errorf("%.0f allocations with 10,000 objects, %.0f with 100", allocationsMany, allocations)
	}
}

// BenchmarkApply is an apply of two objects among many; it fails when it reads more of them than it names.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("objects=%d", n), func(b *testing.B) {
			c, s := filled(n)
			port, applies := 0, 0
			one(b, s, 60_000)
			c.read = 0
			b.ReportAllocs()
			for b.Loop() {
				port = port%60_000 + 1
				one(b, s, port)
				applies++
			}
			if b.ReportMetric(float64(c.read)/float64(applies), "read/op"); c.read != 2*applies {
				b.Errorf("%d applies read %d objects, want 2 each", applies, c.read)
			}
		})
	}
}

// TestResourceVersion: a document says which version it was made from, and is refused if that is not what is stored.
func TestResourceVersion(t *testing.T) {
	c, s := filled(3)
	c.version = 6
	apply := func(name, version string, port int) (*admin.ApplyResponse, error) {
		yaml := fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop%s}\nspec: {selector: {app: a}, ports: [{port: %d}]}\n", name, version, port)
		return s.Apply(t.Context(), &admin.ApplyRequest{Files: []*admin.File{{Name: "a.yaml", Yaml: []byte(yaml)}}})
	}
	for _, tc := range []struct {
		why, name, version string
		port               int
		outcome            string // none: a conflict
	}{
		{"no version replaces whatever there is", "s1", "", 81, configured},
		{"the version that is stored", "s1", `, resourceVersion: "7"`, 82, configured},
		{"an older one", "s1", `, resourceVersion: "7"`, 83, ""},
		{"an older one, and nothing that is not so already", "s1", `, resourceVersion: "7"`, 82, unchanged},
		{"one that never was", "s1", `, resourceVersion: "991"`, 83, ""},
		{"no number", "s1", `, resourceVersion: "x"`, 83, ""},
		{"as a number", "s1", `, resourceVersion: 8`, 83, configured},
		{"any, in Kubernetes' word", "s1", `, resourceVersion: "0"`, 84, configured},
		{"that of an API server, which gives uids", "s1", `, resourceVersion: "991", uid: u`, 85, configured},
		{"of an object that is not here: it comes from elsewhere", "s9", `, resourceVersion: "991"`, 80, created},
	} {
		before := maps.Clone(c.objects)
		response, err := apply(tc.name, tc.version, tc.port)
		if tc.outcome == "" {
			if status.Code(err) != codes.Aborted || hint.CodeOf(err) != "conflict" || !strings.Contains(err.Error(), "Service shop/s1 has version") || !strings.Contains(hint.Of(err), "get it again") {
				t.Errorf("%s: %v, code %q, hint %q; want a conflict that names the object", tc.why, err, hint.CodeOf(err), hint.Of(err))
			}
			if !maps.EqualFunc(before, c.objects, func(a, b config.Stored) bool { return a.Version == b.Version }) {
				t.Errorf("%s: something was written", tc.why)
			}
			continue
		}
		if err != nil || !slices.Equal(response.GetOutcomes(), []string{tc.outcome}) {
			t.Errorf("%s: %v, %v; want %s", tc.why, response, err, tc.outcome)
		}
	}
	for name, o := range c.objects {
		if strings.Contains(string(o.JSON), "resourceVersion") {
			t.Errorf("%s is stored with a version of its own: %s", name, o.JSON)
		}
	}
}

// TestApplyRaces: what was changed between the look and the write is a conflict for a document with a version.
func TestApplyRaces(t *testing.T) {
	c, s := filled(3)
	raced := &racing{counting: c}
	s.config.Registry = raced
	yaml := "apiVersion: v1\nkind: Service\nmetadata: {name: s1, namespace: shop, resourceVersion: \"1\"}\nspec: {ports: [{port: 81}]}\n"
	_, err := s.Apply(t.Context(), &admin.ApplyRequest{Files: []*admin.File{{Name: "a.yaml", Yaml: []byte(yaml)}}})
	if hint.CodeOf(err) != "conflict" {
		t.Errorf("%v, code %q; want a conflict", err, hint.CodeOf(err))
	}
}

// racing is a registry in which somebody writes after each look.
type racing struct{ *counting }

func (r *racing) Read(ctx context.Context, names ...mesh.ObjectName) ([]config.Stored, error) {
	out, err := r.counting.Read(ctx, names...)
	for _, name := range names {
		o := r.objects[name]
		o.Version++
		r.objects[name] = o
	}
	return out, err
}

// TestApplyOnlyOthers: files with nothing for the mesh are applied, with a warning for each document.
func TestApplyOnlyOthers(t *testing.T) {
	c, s := filled(3)
	yaml := "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
	response, err := s.Apply(t.Context(), &admin.ApplyRequest{Files: []*admin.File{{Name: "a.yaml", Yaml: []byte(yaml)}}})
	if err != nil || !response.GetApplied() || len(response.GetObjects()) != 0 || len(response.GetFindings()) != 2 || response.GetFindings()[0].GetCode() != mesh.CodeSkipped {
		t.Errorf("%v, %v; want two warnings and nothing applied", response, err)
	}
	if c.read != 0 {
		t.Errorf("%d objects were read for nothing", c.read)
	}
}

// TestApplySaysOnce: what is wrong with an object is said once.
func TestApplySaysOnce(t *testing.T) {
	_, s := filled(3)
	yaml := "apiVersion: v1\nkind: Service\nmetadata: {name: s1, namespace: shop}\nspec: {ports: [{name: a, port: 81}, {name: b, port: 53, protocol: UDP}]}\n"
	response, err := s.Apply(t.Context(), &admin.ApplyRequest{Files: []*admin.File{{Name: "a.yaml", Yaml: []byte(yaml)}}})
	if err != nil || len(response.GetFindings()) != 1 || response.GetFindings()[0].GetLevel() != "warning" || !response.GetApplied() {
		t.Errorf("%v, %v; want one warning, and applied", response, err)
	}
}

// TestRegisterNamedTarget: an instance of a service that leads to a named port says where it has it.
func TestRegisterNamedTarget(t *testing.T) {
	l := newLab(t)
	service := strings.Replace(serviceYAML, "port: 8080", "port: 80, targetPort: web", 1)
	if _, err := l.apply(t, service, nil); err != nil {
		t.Fatal(err)
	}
	for i, tc := range []struct {
		why, code string
		ports     []*admin.WorkloadPort
		want      map[string]uint32
	}{
		{"a port of that name", "", []*admin.WorkloadPort{{Name: "web", Number: 8443}}, map[string]uint32{"web": 8443}},
		{"one of another name", "service_conflict", []*admin.WorkloadPort{{Name: "http", Number: 8443}}, nil},
		{"none", "service_conflict", nil, nil},
	} {
		name := fmt.Sprintf("ratings-%d", i)
		_, err := l.mesh.RegisterWorkload(t.Context(), &admin.RegisterWorkloadRequest{
			Namespace: "shop", Name: name, Address: fmt.Sprintf("10.244.0.%d", i+1), Service: "ratings", Ports: tc.ports})
		if hint.CodeOf(err) != tc.code || err != nil && !strings.Contains(err.Error(), "web") {
			t.Errorf("%s: %v, code %q; want code %q and the name of the port", tc.why, err, hint.CodeOf(err), tc.code)
			continue
		}
		if tc.code != "" {
			continue
		}
		stored, err := l.store.Get(t.Context(), mesh.ObjectName{Kind: config.KindWorkloadEntry, Namespace: "shop", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		var entry struct {
			Spec struct {
				Ports map[string]uint32 `json:"ports"`
			} `json:"spec"`
		}
		if err := json.Unmarshal(stored.JSON, &entry); err != nil || !maps.Equal(entry.Spec.Ports, tc.want) {
			t.Errorf("%s: stored %s, %v; want ports %v", tc.why, stored.JSON, err, tc.want)
		}
	}
}

package config

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/internal/golden"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// TestCases reads the YAML files of each case and compares findings and what the registry would mean. Rewrite with
// -update and read the difference.
func TestCases(t *testing.T) {
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, a *golden.Archive) {
		var files []File
		for _, name := range a.Names() {
			if strings.HasSuffix(name, ".yaml") {
				data, _ := a.File(name)
				files = append(files, File{Name: name, Data: data})
			}
		}
		objects, findings := Decode(files, "shop")
		a.Compare(t, "findings", render(findings))
		built := build(objects)
		a.Compare(t, "config.json", indent(t, view(built)))
		if HasError(built.Findings) {
			t.Errorf("objects that were read without an error are refused later: %v", built.Findings)
		}
	})
}

// view shows what a case is about: Source is the input again.
func view(b built) map[string]any {
	out := map[string]any{}
	services, workloads := map[string]any{}, map[string]any{}
	for name, s := range b.Services {
		services[name.String()] = s
	}
	for name, w := range b.Workloads {
		workloads[name.String()] = w
	}
	var rules []any
	for _, o := range b.Rules {
		rules = append(rules, readable(o))
	}
	put := func(name string, n int, v any) {
		if n > 0 {
			out[name] = v
		}
	}
	put("services", len(services), services)
	put("workloads", len(workloads), workloads)
	put("rules", len(rules), rules)
	put("findings", len(b.Findings), strings.Split(strings.TrimSpace(string(render(b.Findings))), "\n"))
	return out
}

func render(findings []mesh.Finding) []byte {
	var b strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&b, "%s:%d %s %s [%s] %s: %s", f.File, f.Line, f.Level, f.Code, f.Object, f.Path, f.Message)
		if f.Fix != "" {
			fmt.Fprintf(&b, " (%s)", f.Fix)
		}
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

func indent(t *testing.T, v any) []byte {
	t.Helper()
	out, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

// TestDecodeIsStable: what Build makes of the stored JSON is what Decode saw.
func TestDecodeIsStable(t *testing.T) {
	const in = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: n}\nspec: {host: a, trafficPolicy: {outlierDetection: {interval: 1m}}}\n"
	first, findings := Decode([]File{{Name: "a.yaml", Data: []byte(in)}}, "")
	if len(first) != 1 || HasError(findings) {
		t.Fatalf("Decode(%q) = %v, %v", in, first, findings)
	}
	second, _ := Decode([]File{{Name: "a.json", Data: first[0].JSON}}, "")
	if len(second) != 1 || string(second[0].JSON) != string(first[0].JSON) {
		t.Errorf("decoding again changed the object:\nfirst  %s\nsecond %v", first[0].JSON, second)
	}
	cluster := &clusterv3.Cluster{}
	if err := proto.Unmarshal(build(first).Rules[0].Policy.Ejection.HTTP, cluster); err != nil || cluster.OutlierDetection.Interval.Seconds != 60 {
		t.Errorf("interval 1m is %v (%v)", cluster.OutlierDetection, err)
	}
}

func TestBounds(t *testing.T) {
	bomb := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 12; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	for _, c := range []struct{ name, in, why string }{
		{"aliases", bomb, "a document must not grow without limit by aliases"},
		{"depth", "a: " + strings.Repeat("[", 500) + strings.Repeat("]", 500), "nor nest without limit"},
		{"size", "# " + strings.Repeat("x", MaxBytes), "nor be larger than a bound"},
		{"binary", "a: \xff\xfe", "text is UTF-8"},
		{"list", "- a\n- b\n", "an object is a mapping"},
		{"recursive", "a: &a [*a]\n", "an alias must not contain itself"},
	} {
		objects, findings := Decode([]File{{Name: c.name, Data: []byte(c.in)}}, "")
		if len(objects) != 0 || len(findings) == 0 || findings[0].Code != mesh.CodeUnreadable {
			t.Errorf("%s: got %d objects, findings %v; want none and %s: %s", c.name, len(objects), findings, mesh.CodeUnreadable, c.why)
		}
	}
}

// FuzzDecode: whatever the input, no panic, and an object that is accepted is accepted again as it is stored.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80, name: http}], selector: {app: a}}\n"))
	f.Add([]byte("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [a], http: [{route: [{destination: {host: a}}], timeout: 1.5h}]}\n"))
	f.Add([]byte("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a, annotations: {isthmus.dev/proxy: sidecar}}\nspec: {address: 10.0.0.1, locality: a/b}\n"))
	f.Add([]byte("a: &a\n  b: *a\n---\n<<: {}\n"))
	f.Add([]byte(`{"apiVersion":"multicluster.x-k8s.io/v1beta1","kind":"ServiceExport","metadata":{"name":"a","annotations":{"isthmus.dev/export-to":"b"}}}`))
	f.Add([]byte("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n" + strings.Repeat("  - {port: 80, name: http}\n", 300)))
	f.Add([]byte("apiVersion: v1\nkind: List\nitems:\n- {kind: List, apiVersion: v1, items: [~, {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 8e1, targetPort: web}]}}]}\n"))
	f.Add([]byte("%YAML 1.2\n--- # a\nkind: ServiceList\napiVersion: v1\nitems: [{metadata: {name: a, resourceVersion: 1}, spec: {ports: [{port: 1.0, protocol: UDP}]}}]\n...\n--- [}\n---\nkind: Pod\napiVersion: v1\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		objects, found := Decode([]File{{Name: "fuzz", Data: in}}, "")
		if len(found) > MaxFindings || len(objects) > MaxDocuments {
			t.Errorf("%d findings, %d objects: beyond the bounds\ninput: %q", len(found), len(objects), in)
		}
		built := build(objects)
		if HasError(built.Findings) {
			t.Errorf("accepted once, then refused: %v\ninput: %q", built.Findings, in)
		}
	})
}

// built is what the objects of a case mean, together.
type built struct {
	Services  map[mesh.ServiceName]*mesh.Service
	Workloads map[mesh.WorkloadName]*mesh.Workload
	Rules     []*rule.Object
	Findings  []mesh.Finding
}

func build(objects []Object) built {
	out := built{Services: map[mesh.ServiceName]*mesh.Service{}, Workloads: map[mesh.WorkloadName]*mesh.Workload{}}
	exports := map[mesh.ServiceName]*mesh.Export{}
	for _, o := range objects {
		value, findings := Compile(o)
		out.Findings = append(out.Findings, findings...)
		switch v := value.(type) {
		case *mesh.Service:
			out.Services[v.Name] = v
		case *mesh.Workload:
			out.Workloads[v.Name] = v
		case *mesh.Export:
			exports[mesh.ServiceName{Namespace: o.Namespace, Name: o.Name}] = v
		case *rule.Object:
			out.Rules = append(out.Rules, v)
		}
	}
	for name, export := range exports {
		if s := out.Services[name]; s != nil {
			s.Export = export
		}
	}
	slices.SortFunc(out.Rules, func(a, b *rule.Object) int { return strings.Compare(a.Name.String(), b.Name.String()) })
	return out
}

// FuzzProducer: no rule that another cluster sends along with an export panics.
func FuzzProducer(f *testing.F) {
	routing := func(routes int) []byte {
		route := `{"match":[{"uri":{"prefix":"/a"}}],"route":[{"destination":{"host":"a.shop.svc.clusterset.local","subset":"v1"},"weight":100}],"timeout":"1s","retries":{"attempts":3}}`
		return []byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a","namespace":"shop"},"spec":{"hosts":["a.shop.svc.clusterset.local"],"http":[` +
			strings.Repeat(route+",", routes) + route + `]}}`)
	}
	f.Add(routing(0), []byte(`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"a","namespace":"shop"},"spec":{"host":"a.shop.svc.clusterset.local","subsets":[{"name":"v1","labels":{"version":"v1"}}]}}`))
	f.Add(routing(300), []byte("{}")) // the most bytes a rule may have
	f.Fuzz(func(t *testing.T, virtualService, destinationRule []byte) {
		svc := &mesh.ExportedService{
			Name: mesh.ServiceName{Namespace: "shop", Name: "a"}, Ports: []mesh.Port{{Name: "http", Number: 80, Protocol: mesh.HTTP}},
			VirtualServices: [][]byte{virtualService}, DestinationRules: [][]byte{destinationRule},
		}
		Producer("west", svc)
	})
}

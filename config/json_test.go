package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"isthmus.dev/isthmus/mesh"
)

// FuzzStored: an object that was stored means the same whichever of the two readers reads it.
func FuzzStored(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"a","namespace":"b"},"spec":{"ports":[{"port":80,"name":"http"}],"selector":{"x":"1.0","y":"true","z":"null"}}}`))
	f.Add([]byte(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":8e1}],"clusterIP":null,"publishNotReadyAddresses":false}}`))
	f.Add([]byte(`{"a":{"a":{"a":[1,-1,1.5,true,false,null,"\u00e9\n"]}},"a":1}`))
	f.Add([]byte(`{"kind":"Service"} {"kind":"Service"}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		root, ok := fromJSON(in)
		if !ok {
			return
		}
		docs := documents(File{Data: in}, &report{})
		if len(docs) != 1 {
			return // JSON that is no YAML, or beyond a bound of the other reader
		}
		want, wantErr := toJSON(docs[0].root)
		got, err := toJSON(root)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("as JSON: %v; as YAML: %v; input %q", err, wantErr, in)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("input %q: -as YAML +as JSON:\n%s", in, diff)
		}
	})
}

// FuzzCompiler: an object means the same whether it is compiled alone or among many. The second time it is read from what the
// first left.
func FuzzCompiler(f *testing.F) {
	for _, spec := range []string{
		`{"address":"10.0.0.1","labels":{"app":"x","version":"v1"},"locality":"eu/eu-a","serviceAccount":"default","ports":{"http":8080}}`,
		`{"address":"10.0.0.1"}`, `{ "address" : "10.0.0.1" , "locality" : "eu" }`, `{"address":"10.0.0.1","locality":"a/b/c/d"}`,
		`{"address":"10.0.0.1","labels":{}}`, `{"address":"10.0.0.1","labels":{"a":"1","a":"2"}}`, `{"address":"10.0.0.1","labels":{"a":null}}`,
		`{"address":"10.0.0.1","labels":{"a":"\u00e9"}}`, `{"address":"10.0.0.1","labels":{"a":"é"}}`, `{"address":"10.0.0.1","ports":{"a":70000}}`,
		`{"address":"10.0.0.1","ports":{"a":08}}`, `{"address":"10.0.0.1","ports":{"a":8e1}}`, `{"address":"10.0.0.1","ports":{"a":99999999999}}`,
		`{"address":"127.0.0.1"}`, `{"address":"10.0.0.1","service_account":"x"}`, `{"address":"10.0.0.1","serviceAccount":"X"}`,
		`{"address":"10.0.0.1","weight":3}`, `{"address":"10.0.0.1",}`, `{"address":"10.0.0.1","address":"10.0.0.2"}`, `{"address":"10.0.0.1"}}`,
	} {
		f.Add([]byte(entryJSON(spec)), "shop", "a")
	}
	f.Add([]byte(strings.ReplaceAll(entryJSON(`{"address":"10.0.0.1"}`), "sidecar", "eastwest")), "shop", "a")
	f.Add([]byte(strings.ReplaceAll(entryJSON(`{"address":"10.0.0.1"}`), "/v1", "/v9")), "shop", "a")
	f.Add([]byte(entryJSON(`{"address":"10.0.0.1"}`)), "other", "b")
	f.Fuzz(func(t *testing.T, in []byte, namespace, name string) {
		o := Object{Kind: KindWorkloadEntry, Namespace: namespace, Name: name, JSON: in}
		want, wantFindings := Compile(o)
		var c Compiler
		for range 2 {
			got, findings := c.Compile(o)
			if diff := cmp.Diff([]any{want, wantFindings}, []any{got, findings}, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("%q: -alone +among many:\n%s", in, diff)
			}
		}
	})
}

// entryJSON is a stored instance.
func entryJSON(spec string) string {
	return `{"apiVersion":"networking.istio.io/v1","kind":"WorkloadEntry","metadata":{"annotations":{"isthmus.dev/proxy":"sidecar"},` +
		`"name":"a","namespace":"shop"},"spec":` + spec + `}`
}

// TestCompilerShares: instances with the same labels share them, and a compiler that has seen too much starts anew.
func TestCompilerShares(t *testing.T) {
	var c Compiler
	compile := func(spec string) *mesh.Workload {
		value, _ := c.Compile(Object{Kind: KindWorkloadEntry, Namespace: "shop", Name: "a", JSON: []byte(entryJSON(spec))})
		return value.(*mesh.Workload)
	}
	a, b := compile(`{"address":"10.0.0.1","labels":{"app":"x"}}`), compile(`{"address":"10.0.0.2","labels":{"app":"x"}}`)
	if reflect.ValueOf(a.Labels).Pointer() != reflect.ValueOf(b.Labels).Pointer() {
		t.Error("two instances have a map each of the same labels")
	}
	for i := range maxShared + 2 {
		compile(fmt.Sprintf(`{"address":"10.0.0.1","labels":{"app":"x%d"}}`, i))
	}
	if n := len(c.labels); n == 0 || n > maxShared {
		t.Errorf("%d sets of labels are kept, at most %d should be", n, maxShared)
	}
}

func BenchmarkCompile(b *testing.B) {
	stored := map[string]Object{
		"instance": {Kind: KindWorkloadEntry, Namespace: "shop", Name: "a",
			JSON: []byte(entryJSON(`{"address":"10.0.0.1","labels":{"app":"x","version":"v1"},"locality":"eu/eu-a","serviceAccount":"default"}`))},
		"service": {Kind: KindService, Namespace: "shop", Name: "a", JSON: []byte(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"a","namespace":"shop"},` +
			`"spec":{"selector":{"app":"x"},"ports":[{"name":"http","port":8080,"appProtocol":"http"}]}}`)},
	}
	for name, o := range stored {
		b.Run(name+"/alone", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Compile(o)
			}
		})
		b.Run(name+"/among many", func(b *testing.B) {
			b.ReportAllocs()
			var c Compiler
			for b.Loop() {
				c.Compile(o)
			}
		})
	}
}

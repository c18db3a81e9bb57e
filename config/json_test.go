package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
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

func BenchmarkCompile(b *testing.B) {
	o := Object{Kind: KindWorkloadEntry, Namespace: "shop", Name: "a", JSON: []byte(`{"apiVersion":"networking.istio.io/v1","kind":"WorkloadEntry",` +
		`"metadata":{"annotations":{"isthmus.dev/proxy":"sidecar"},"name":"a","namespace":"shop"},"spec":{"address":"10.0.0.1","labels":{"app":"x","version":"v1"},"locality":"eu/eu-a","serviceAccount":"default"}}`)}
	b.ReportAllocs()
	for b.Loop() {
		Compile(o)
	}
}

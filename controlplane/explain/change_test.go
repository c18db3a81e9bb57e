package explain_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/explain"
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

func TestParseChange(t *testing.T) {
	tests := []struct {
		text string
		want explain.Change
		bad  string // in the error
	}{
		{"cluster:west=gone", explain.Change{Kind: explain.ClusterGone, A: "west"}, ""},
		{"gateway:west=gone", explain.Change{Kind: explain.GatewayGone, A: "west"}, ""},
		{"workload:shop/ratings-1=gone", explain.Change{Kind: explain.WorkloadGone, A: "shop", B: "ratings-1"}, ""},
		{"zone:east/eu-a=gone", explain.Change{Kind: explain.ZoneGone, A: "east", B: "eu-a"}, ""},
		{"link:a-b-c=cut", explain.Change{Kind: explain.LinkCut, A: "a-b-c"}, ""},
		{"evict:north", explain.Change{Kind: explain.Evict, A: "north"}, ""},
		{"weight:shop/reviews:v2=50", explain.Change{Kind: explain.Weight, A: "shop", B: "reviews", Subset: "v2", W: 50}, ""},
		{"file:a/b=c.yaml", explain.Change{Kind: explain.File, A: "a/b=c.yaml"}, ""},
		{"", explain.Change{}, "there is no change"},
		{"moon:full", explain.Change{}, "there is no change"},
		{"cluster:west", explain.Change{}, `end in "=gone"`},
		{"link:a-b=gone", explain.Change{}, `end in "=cut"`},
		{"link:ab=cut", explain.Change{}, "not two clusters"},
		{"cluster:=gone", explain.Change{}, "name is missing"},
		{"workload:ratings-1=gone", explain.Change{}, "not two names"},
		{"weight:shop/reviews=50", explain.Change{}, "it is not weight:"},
		{"weight:shop/reviews:v2=101", explain.Change{}, "from 0 to 100"},
		{"weight:shop/reviews:v2=-1", explain.Change{}, "from 0 to 100"},
		{"file:", explain.Change{}, "name is missing"},
	}
	for _, test := range tests {
		t.Run(test.text, func(t *testing.T) {
			got, err := explain.ParseChange(test.text)
			if test.bad == "" {
				if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
					t.Errorf("%v; -want +got\n%s", err, diff)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.bad) || hint.CodeOf(err) != explain.CodeGrammar || !strings.Contains(hint.Of(err), explain.Grammar) {
				t.Errorf("got %v, code %q, hint %q; want an error with %q and the grammar", err, hint.CodeOf(err), hint.Of(err), test.bad)
			}
		})
	}
}

// objectsOf are the objects of the canary, as the registry has them.
func objectsOf(t *testing.T) map[mesh.ObjectName]config.Object {
	t.Helper()
	out := map[mesh.ObjectName]config.Object{}
	objects, _ := config.Decode([]config.File{{Name: "canary.yaml", Data: []byte(canary)}}, "shop")
	for _, o := range objects {
		out[o.ID()] = o
	}
	return out
}

func TestWhatIf(t *testing.T) {
	reviews := explain.Call{From: "caller-eu-a.shop", Host: "reviews.shop.svc.clusterset.local"}
	ratings := explain.Call{From: "caller-eu-a.shop", Host: "ratings"}
	orders := explain.Call{From: "caller-eu-a.shop", Host: "orders"}
	tests := []struct {
		why     string
		changes []string
		file    string
		call    explain.Call
		want    map[string]int
	}{
		{"nothing", nil, "", reviews, map[string]int{"north eu-c v1": 90, "north eu-c v2": 10}},
		{"the near cluster is gone", []string{"cluster:north=gone"}, "", reviews, map[string]int{"west us-a v1": 90, "west us-a v2": 10}},
		{"its gateway is gone", []string{"gateway:north=gone"}, "", reviews, map[string]int{"west us-a v1": 90, "west us-a v2": 10}},
		{"the link to it is cut", []string{"link:north-east=cut"}, "", reviews, map[string]int{"west us-a v1": 90, "west us-a v2": 10}},
		{"a link of others is cut", []string{"link:north-west=cut"}, "", reviews, map[string]int{"north eu-c v1": 90, "north eu-c v2": 10}},
		{"it is evicted", []string{"evict:north"}, "", reviews, map[string]int{"west us-a v1": 90, "west us-a v2": 10}},
		{"its zone is gone", []string{"zone:north/eu-c=gone"}, "", reviews, map[string]int{"west us-a v1": 90, "west us-a v2": 10}},
		{"both are gone", []string{"cluster:north=gone", "gateway:west=gone"}, "", reviews, map[string]int{"v1": 90, "v2": 10}},
		{"a weight, the others share the rest", []string{"weight:shop/reviews:v2=50"}, "", reviews, map[string]int{"north eu-c v1": 50, "north eu-c v2": 50}},
		{"all weights", []string{"weight:shop/reviews:v1=25", "weight:shop/reviews:v2=75"}, "", reviews, map[string]int{"north eu-c v1": 25, "north eu-c v2": 75}},
		{"all of it", []string{"weight:shop/reviews:v2=100"}, "", reviews, map[string]int{"north eu-c v2": 100}},
		{"an instance is gone", []string{"workload:shop/ratings-1=gone"}, "", ratings, map[string]int{"east eu-b": 100}},
		{"a zone of this cluster is gone", []string{"zone:east/eu-a=gone"}, "", ratings, map[string]int{"east eu-b": 100}},
		{"a rule is applied", []string{"file:f.yaml"}, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http: [{route: [{destination: {host: reviews.shop.svc.clusterset.local, port: {number: 8080}}}]}]
`, ratings, map[string]int{"north eu-c": 100}},
		{"a weight of a rule that a file has", []string{"file:f.yaml", "weight:shop/reviews:v1=30"}, strings.ReplaceAll(canary, "weight: 90", "weight: 100"),
			reviews, map[string]int{"north eu-c v1": 30, "north eu-c v2": 70}},
		{"a service and its instance are applied", []string{"file:f.yaml"}, `
apiVersion: v1
kind: Service
metadata: {name: orders}
spec: {selector: {app: orders}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: orders-1, annotations: {isthmus.dev/proxy: sidecar}}
spec: {address: 10.0.0.9, labels: {app: orders}, serviceAccount: orders, locality: eu/eu-b}
`, orders, map[string]int{"east eu-b": 100}},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			state := east(t).Apply(applied(t, canary)...)
			plan := build.From(state.Snapshot(), translate.Options{})
			var changes []explain.Change
			for _, text := range test.changes {
				c, err := explain.ParseChange(text)
				if err != nil {
					t.Fatal(err)
				}
				c.Content = []byte(test.file)
				changes = append(changes, c)
			}
			next, err := explain.Apply(state, changes, objectsOf(t), "shop")
			if err != nil {
				t.Fatal(err)
			}
			a, err := explain.Explain(explain.Mesh{Snapshot: next.Snapshot(), Plan: plan.Step(next.Snapshot())}, test.call)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, byCluster(a)); diff != "" {
				t.Errorf("-want +got\n%s\n%+v", diff, a)
			}
			if diff := cmp.Diff(map[string]int{"north eu-c v1": 90, "north eu-c v2": 10}, byCluster(ask(t, state, reviews))); diff != "" {
				t.Errorf("the state itself changed: -want +got\n%s", diff)
			}
		})
	}
}

// TestNoSuchChange: what is not there cannot be gone.
func TestNoSuchChange(t *testing.T) {
	for text, code := range map[string]string{
		"cluster:south=gone": explain.CodeNoObject, "cluster:east=gone": explain.CodeNoObject, "evict:east": explain.CodeNoObject,
		"workload:shop/x=gone": explain.CodeNoObject, "zone:east/x=gone": explain.CodeNoObject, "zone:west/x=gone": explain.CodeNoObject,
		"link:east-south=cut": explain.CodeNoObject, "link:east-east=cut": explain.CodeNoObject, "weight:shop/x:v1=1": explain.CodeNoObject,
		"weight:shop/reviews:v3=1": explain.CodeNoObject, "file:bad.yaml": explain.CodeRefused,
	} {
		c, err := explain.ParseChange(text)
		if err != nil {
			t.Fatal(err)
		}
		c.Content = []byte("kind: [")
		if _, err = explain.Apply(east(t), []explain.Change{c}, objectsOf(t), "shop"); hint.CodeOf(err) != code || hint.Of(err) == "" {
			t.Errorf("%s: got %v, code %q, hint %q; want code %q and a hint", text, err, hint.CodeOf(err), hint.Of(err), code)
		}
	}
	many := []explain.Change{{Kind: explain.Weight, A: "shop", B: "reviews", Subset: "v1", W: 60}, {Kind: explain.Weight, A: "shop", B: "reviews", Subset: "v2", W: 60}}
	if _, err := explain.Apply(east(t), many, objectsOf(t), "shop"); hint.CodeOf(err) != explain.CodeGrammar {
		t.Errorf("120 of 100: got %v", err)
	}
	if _, err := explain.Apply(east(t), make([]explain.Change, 101), nil, ""); hint.CodeOf(err) != explain.CodeGrammar {
		t.Errorf("101 changes: got %v", err)
	}
	if got := explain.Objects(many); len(got) != 1 || got[0] != object(config.KindVirtualService, "reviews") {
		t.Errorf("objects that are needed: %v", got)
	}
}

package checks

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"isthmus.dev/isthmus/hack/kube/pki"
)

func TestWebhooks(t *testing.T) {
	c := clusters[0]
	ns := c.namespace(t)
	ca, err := pki.NewAuthority("webhook")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(pki.Subject{Name: "webhook", Hosts: []string{"hook." + ns + ".svc"}})
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: hook, namespace: NS, labels: {app: hook}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: hook
    image: isthmus.local/webhook:1
    env: [{name: CERT, value: CERT_PEM}, {name: KEY, value: KEY_PEM}]
    readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: hook, namespace: NS}
spec: {selector: {app: hook}, ports: [{port: 443, targetPort: 8443}]}
`, "CERT_PEM", quote(t, string(pair.Cert)), "KEY_PEM", quote(t, string(pair.Key)))
	c.ready(t, ns, "hook")
	for kind, path := range map[string]string{"Validating": "/validate", "Mutating": "/mutate"} {
		c.apply(t, ns, `
apiVersion: admissionregistration.k8s.io/v1
kind: KINDWebhookConfiguration
metadata: {name: NS}
webhooks:
- name: hook.example.org
  clientConfig: {service: {name: hook, namespace: NS, path: PATH}, caBundle: BUNDLE}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: NS}}
  sideEffects: None
  admissionReviewVersions: [v1]
`, "KIND", kind, "PATH", path, "BUNDLE", base64.StdEncoding.EncodeToString(ca.Cert))
	}
	maps := c.typed.CoreV1().ConfigMaps(ns)
	eventually(t, "the mutating webhook", func() error {
		m, err := maps.Create(t.Context(), &core.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "m-"}}, metav1.CreateOptions{})
		if err == nil && m.Annotations["mutated"] != "yes" {
			err = fmt.Errorf("annotations %v", m.Annotations)
		}
		return err
	})
	eventually(t, "the validating webhook", func() error {
		_, err := maps.Create(t.Context(), &core.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "m-", Labels: map[string]string{"deny": "yes"}}}, metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "denied by the test webhook") {
			return fmt.Errorf("creating what it denies: %v", err)
		}
		return nil
	})
}

// Two owners of one object keep their own fields, and a conflict names the other one.
func TestCustomResourceServerSideApply(t *testing.T) {
	c := clusters[0]
	ns := c.namespace(t)
	c.apply(t, ns, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {kind: Thing, plural: things, singular: thing}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {a: {type: string}, b: {type: integer}}}}
`)
	c.apply(t, ns, "apiVersion: example.org/v1\nkind: Thing\nmetadata: {name: one, namespace: NS}\nspec: {a: mine}\n")
	things := c.dynamic.Resource(schema.GroupVersionResource{Group: "example.org", Version: "v1", Resource: "things"}).Namespace(ns)
	patch := func(spec string) error {
		_, err := things.Patch(t.Context(), "one", types.ApplyPatchType,
			[]byte(`{"apiVersion":"example.org/v1","kind":"Thing","metadata":{"name":"one"},"spec":`+spec+`}`), metav1.PatchOptions{FieldManager: "other"})
		return err
	}
	if err := patch(`{"b":2}`); err != nil {
		t.Fatal(err)
	}
	if err := patch(`{"a":"theirs","b":2}`); err == nil || !strings.Contains(err.Error(), "conflict") {
		t.Errorf("taking another owner's field: %v, want a conflict", err)
	}
	if err := patch(`{"b":"no number"}`); err == nil {
		t.Error("the schema let a string through where it wants an integer")
	}
	got, err := things.Get(t.Context(), "one", metav1.GetOptions{})
	if err != nil || fmt.Sprint(got.Object["spec"]) != "map[a:mine b:2]" {
		t.Errorf("spec = %v, %v; want a: mine, b: 2", got.Object["spec"], err)
	}
}

// A clusterset.local name is answered from a ServiceImport made by hand.
func TestClusterSetName(t *testing.T) {
	c := clusters[0]
	ns := c.namespace(t)
	c.apply(t, ns, toolbox+`---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceImport
metadata: {name: far, namespace: NS}
spec: {type: ClusterSetIP, ips: [10.111.222.33], ports: [{name: http, port: 80, protocol: TCP}]}
`)
	c.ready(t, ns, "tools")
	c.shell(t, ns, "tools", "dig +short far."+ns+".svc.clusterset.local A", "10.111.222.33")
}

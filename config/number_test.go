package config

import (
	"strings"
	"testing"

	"isthmus.dev/isthmus/mesh"
)

// TestWholeNumbers: a field of whole numbers takes every spelling that Kubernetes' own decoder takes, and is kept in digits.
func TestWholeNumbers(t *testing.T) {
	const rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: shop}\n" +
		"spec: {host: a, trafficPolicy: {connectionPool: {tcp: {maxConnections: N}}, outlierDetection: {consecutive5xxErrors: N}}}\n"
	for _, tc := range []struct{ written, want, why string }{
		{"7", "7", "digits"},
		{"1e+06", "1000000", "as Helm renders a million"},
		{"1E3", "1000", "a capital letter"},
		{"1.0", "1", "a fraction of nothing"},
		{"1.5e1", "15", "a fraction that the exponent takes away"},
		{"1.234567e+06", "1234567", "as Helm renders what is more than a million"},
		{"1.5", "", "a fraction"},
		{"1e-1", "", "a fraction by its exponent"},
		{"1e300", "", "more than any field holds"},
		{"9007199254740993.0", "", "a fraction's form loses digits of it"},
		{".inf", "", "no number"},
		{`"1e3"`, "", "text"},
		{"1e3x", "", "text without quotes"},
	} {
		objects, findings := Decode([]File{{Name: "r.yaml", Data: []byte(strings.ReplaceAll(rule, "N", tc.written))}}, "")
		if tc.want == "" {
			if len(objects) != 0 || len(findings) != 2 || findings[0].Code != mesh.CodeInvalid || !strings.Contains(findings[0].Message, "whole number") {
				t.Errorf("%s (%s): got %d objects, findings %v; want both fields refused", tc.written, tc.why, len(objects), findings)
			}
			continue
		}
		if len(objects) != 1 || !strings.Contains(string(objects[0].JSON), `"maxConnections":`+tc.want+`}`) || !strings.Contains(string(objects[0].JSON), `"consecutive5xxErrors":`+tc.want+`}`) {
			t.Errorf("%s (%s): stored %v, findings %v; want %s in digits", tc.written, tc.why, objects, findings, tc.want)
		}
	}
	objects, findings := Decode([]File{{Name: "s.yaml", Data: []byte("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 8e1, targetPort: 8.08e3}]}\n")}}, "")
	if len(objects) != 1 || !strings.Contains(string(objects[0].JSON), `{"port":80,"targetPort":8080}`) {
		t.Errorf("a Service: %v, findings %v", objects, findings)
	}
}

// TestServerFields: what belongs to the server an object came from is not kept, but for the version it was made from.
func TestServerFields(t *testing.T) {
	const in = `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"a","namespace":"n","annotations":{"k":"v"},` +
		`"uid":UID,"generation":2,"creationTimestamp":null,"managedFields":[],"ownerReferences":[],"finalizers":["f"],"resourceVersion":VERSION},` +
		`"spec":{"host":"a"},"status":{"x":1}}`
	const want = `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"annotations":{"k":"v"},"name":"a","namespace":"n"},"spec":{"host":"a"}}`
	for _, tc := range []struct{ written, uid, want, why string }{
		{`"991"`, `null`, "991", "as get writes it"},
		{`991`, `""`, "991", "without quotes"},
		{`"991"`, `"u"`, "", "with a uid it is an API server's, whose versions say nothing here"},
		{`null`, `null`, "", "none"},
		{`""`, `null`, "", "none"},
		{`"0"`, `null`, "", "Kubernetes' word for any"},
	} {
		objects, findings := Decode([]File{{Name: "a", Data: []byte(strings.NewReplacer("VERSION", tc.written, "UID", tc.uid).Replace(in))}}, "")
		if len(objects) != 1 || len(findings) != 0 || string(objects[0].JSON) != want || objects[0].ResourceVersion != tc.want {
			t.Errorf("resourceVersion %s (%s): %+v, %v; want version %q, stored %s", tc.written, tc.why, objects, findings, tc.want, want)
		}
	}
}

// TestProtocolNamed: a port's name says its protocol by Istio's rule.
func TestProtocolNamed(t *testing.T) {
	for name, want := range map[string]mesh.Protocol{
		"tcp": mesh.TCP, "mysql": mesh.TCP, "mongo-a": mesh.TCP, "redis": mesh.TCP, "tls": mesh.TCP, "https": mesh.TCP, "https-x": mesh.TCP,
		"grpc": mesh.GRPC, "grpc-api": mesh.GRPC, "http2": mesh.GRPC, "grpc-web": mesh.HTTP, "grpc-web-a": mesh.HTTP, "http": mesh.HTTP, "http-foo": mesh.HTTP,
		"": "", "web": "", "httpfoo": "", "grpc-": mesh.GRPC, "grpcweb": "", "foo-http": "", "grpc-webs": mesh.HTTP,
	} {
		if got, ok := ProtocolNamed(name); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v; want %q", name, got, ok, want)
		}
	}
}

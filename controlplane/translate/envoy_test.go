package translate_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	. "isthmus.dev/isthmus/controlplane/translate"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"isthmus.dev/isthmus/xds"
)

func diff(before, after xds.State, typeURL string) (changed, removed []string) {
	changed, removed = xds.Diff(before, after, typeURL)
	slices.Sort(changed)
	slices.Sort(removed)
	return changed, removed
}

// envoyBinary is the Envoy that make puts beside the code. A test that needs it fails without it.
func envoyBinary(t testing.TB) string {
	t.Helper()
	bin := os.Getenv("ISTHMUS_ENVOY")
	if bin == "" {
		bin = filepath.Join("..", "..", ".tools", "envoy")
	}
	bin, err := filepath.Abs(bin)
	if err == nil {
		_, err = os.Stat(bin)
	}
	if err != nil {
		t.Fatalf("Envoy is missing (%v): run make build, or set ISTHMUS_ENVOY", err)
	}
	return bin
}

// validate has Envoy check resources as a static configuration.
func validate(t *testing.T, resources map[string][]Named) {
	t.Helper()
	ca := newAuthority(t)
	b := bootstrap(t, resources, ca, ca.leaf(t, "spiffe://east.demo.isthmus.internal/ns/shop/sa/default"))
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, b.encode(t), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(envoyBinary(t), "--mode", "validate", "-c", file, "--log-level", "warning", "--service-node", "test", "--service-cluster", "test")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("Envoy refuses the configuration: %v\n%s\n%s", err, out, cmd)
	}
}

// object is a piece of a bootstrap as JSON has it.
type object = map[string]any

// static is a bootstrap in which every resource stands by itself: what would come over xDS is put in its place.
type static struct {
	admin     string // path of the admin socket; empty for none
	clusters  []object
	listeners []object
	secrets   []object
	// clustersFile is where clusters come from that change; empty for none.
	clustersFile string
}

func (b *static) encode(t testing.TB) []byte {
	t.Helper()
	root := object{
		"node": object{"id": "test", "cluster": "test"},
		"bootstrap_extensions": []any{object{
			"name":         "envoy.bootstrap.internal_listener",
			"typed_config": object{"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"},
		}},
		"layered_runtime": object{"layers": []any{object{
			"name": "isthmus", "static_layer": object{"re2.max_program_size.error_level": MaxRegexProgram},
		}}},
		"static_resources": object{"clusters": b.clusters, "listeners": b.listeners, "secrets": b.secrets},
	}
	if b.clustersFile != "" {
		root["dynamic_resources"] = object{"cds_config": object{"resource_api_version": "V3", "path_config_source": object{"path": b.clustersFile}}}
	}
	if b.admin != "" {
		root["admin"] = object{"address": object{"pipe": object{"path": b.admin}}}
	}
	out, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func bootstrap(t testing.TB, resources map[string][]Named, ca *authority, own *leaf) *static {
	t.Helper()
	b := &static{secrets: []object{{"name": OwnCertificate, "tls_certificate": object{
		"certificate_chain": object{"inline_bytes": own.chain}, "private_key": object{"inline_bytes": own.key},
	}}}}
	byName := func(typeURL string) map[string]object {
		out := map[string]object{}
		for _, r := range resources[typeURL] {
			out[r.Name] = asJSON(t, r.Message)
		}
		return out
	}
	endpoints, routes := byName(xds.EndpointType), byName(xds.RouteType)
	inline := func(key string, v any) (string, any) {
		switch o, _ := v.(object); key {
		case "sdsConfig":
			return "", nil // the secret of that name in the bootstrap
		case "rds":
			route, ok := routes[o["routeConfigName"].(string)]
			if !ok {
				t.Errorf("route configuration %v is not there", o["routeConfigName"])
			}
			return "routeConfig", route
		case "edsClusterConfig":
			return "", nil
		case "trustedCa":
			return key, object{"inline_bytes": ca.pem}
		}
		return key, v
	}
	for _, r := range resources[xds.ClusterType] {
		c := asJSON(t, r.Message)
		if c["type"] == "EDS" {
			c["type"] = "STATIC"
			assignment, ok := endpoints[r.Name]
			if !ok {
				t.Errorf("cluster %s has no endpoints resource", r.Name)
			}
			c["loadAssignment"] = assignment
		}
		b.clusters = append(b.clusters, rewrite(c, inline).(object))
	}
	for _, r := range resources[xds.ListenerType] {
		b.listeners = append(b.listeners, rewrite(asJSON(t, r.Message), inline).(object))
	}
	for _, r := range resources[xds.SecretType] {
		b.secrets = append(b.secrets, rewrite(asJSON(t, r.Message), inline).(object))
	}
	return b
}

// rewrite applies fn to every field; an empty key drops it.
func rewrite(v any, fn func(string, any) (string, any)) any {
	switch v := v.(type) {
	case object:
		out := object{}
		for k, child := range v {
			if k, child = fn(k, child); k != "" {
				out[k] = rewrite(child, fn)
			}
		}
		return out
	case []any:
		for i := range v {
			v[i] = rewrite(v[i], fn)
		}
	}
	return v
}

// authority issues certificates for tests: one root for every cluster, as what is tested here is Envoy's matchers.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string // base64 of the PEM, as JSON has bytes
	raw  []byte
}

type leaf struct {
	chain, key       string // base64 of the PEM
	chainPEM, keyPEM []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	raw := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return &authority{cert: cert, key: key, raw: raw, pem: base64.StdEncoding.EncodeToString(raw)}
}

func (a *authority) leaf(t testing.TB, uris ...string) *leaf {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, u := range uris {
		parsed, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, parsed)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	l := &leaf{
		chainPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		keyPEM:   bytes.TrimSpace(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})),
	}
	l.chain, l.key = base64.StdEncoding.EncodeToString(l.chainPEM), base64.StdEncoding.EncodeToString(l.keyPEM)
	return l
}

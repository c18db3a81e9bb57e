package bootstrap

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"isthmus.dev/isthmus/internal/golden"
	"isthmus.dev/isthmus/mesh"
)

// envoy finds the Envoy the tests run, which must be there.
func envoy(t *testing.T) string {
	t.Helper()
	path := os.Getenv("ISTHMUS_ENVOY")
	if path == "" {
		path, _ = filepath.Abs("../../.tools/envoy")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("Envoy is missing: %v (run make envoy, or set ISTHMUS_ENVOY)", err)
	}
	return path
}

func TestGolden(t *testing.T) {
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, a *golden.Archive) {
		in, _ := a.File("in.yaml")
		var c Config
		if err := yaml.UnmarshalStrict(in, &c); err != nil {
			t.Fatal(err)
		}
		b, err := New(c)
		if err != nil {
			a.Compare(t, "error", []byte(err.Error()))
			return
		}
		text, err := YAML(b)
		if err != nil {
			t.Fatal(err)
		}
		a.Compare(t, "out.yaml", text)
	})
}

// TestEnvoyAcceptsIt asks the real Envoy about every golden case that is not an error.
func TestEnvoyAcceptsIt(t *testing.T) {
	binary := envoy(t)
	golden.Cases(t, "testdata/*.txtar", func(t *testing.T, a *golden.Archive) {
		text, ok := a.File("out.yaml")
		if !ok {
			return
		}
		path := filepath.Join(t.TempDir(), "envoy.yaml")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		args := append([]string{"--mode", "validate"}, Args(path, 1)...)
		if out, err := exec.Command(binary, args...).CombinedOutput(); err != nil || !strings.Contains(string(out), "OK") {
			t.Errorf("envoy %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	})
}

func TestStatistics(t *testing.T) {
	tests := []struct {
		kind mesh.ProxyKind
		name string
		want bool
	}{
		{mesh.Sidecar, "cluster.outbound_8080_reviews_shop_clusterset.upstream_rq_5xx", true},
		{mesh.Sidecar, "cluster.outbound_8080_reviews_shop_clusterset.upstream_rq_time", true},
		{mesh.Sidecar, "cluster.outbound_8080_reviews_shop_clusterset.external.upstream_rq_5xx", false},
		{mesh.Sidecar, "cluster.outbound_8080_reviews_shop_clusterset.circuit_breakers.default.rq_open", false},
		{mesh.Sidecar, "cluster.inbound_8080.upstream_rq_total", true},
		{mesh.Sidecar, "cluster.outbound_8080_reviews_shop_clusterset.http2.keepalive_timeout", true},
		{mesh.Sidecar, "cluster.outbound_8080_reviews_shop_clusterset.http2.streams_active", false},
		{mesh.Sidecar, "listener.0.0.0.0_15006.downstream_cx_transport_socket_connect_timeout", true},
		{mesh.Sidecar, "listener.0.0.0.0_15006.downstream_cx_overflow", true},
		{mesh.Sidecar, "cluster.gateway_west.upstream_cx_connect_fail", true},
		{mesh.Sidecar, "cluster.outbound_8080_a_b_local.membership_healthy", true},
		{mesh.Sidecar, "cluster.outbound_8080_a_b_local.outlier_detection.ejections_active", true},
		{mesh.Sidecar, "http.inbound_8080.downstream_rq_2xx", true},
		{mesh.Sidecar, "http.outbound_8080_reviews_shop_clusterset.downstream_rq_5xx", true},
		{mesh.Sidecar, "http.outbound_8080_reviews_shop_clusterset.downstream_rq_time", true},
		{mesh.Sidecar, "http.outbound_8080_reviews_shop_clusterset.downstream_rq_completed", false},
		{mesh.Sidecar, "http.outbound_8080_reviews_shop_clusterset.downstream_cx_active", false},
		{mesh.Sidecar, "listener.outbound.downstream_cx_active", true},
		{mesh.Sidecar, "tcp.inbound_7000.downstream_cx_total", true},
		{mesh.Sidecar, "http.inbound_8080.rbac.denied", true},
		{mesh.Sidecar, "http.inbound_8080.tracing.random_sampling", false},
		{mesh.Sidecar, "server.live", true},
		{mesh.EastWest, "cluster.s0.outbound_.8080_._.reviews.shop.svc.clusterset.local.upstream_cx_total", false},
		{mesh.EastWest, "cluster.federation.upstream_cx_total", true},
		{mesh.EastWest, "tcp.gateway.downstream_cx_total", true},
		{mesh.EastWest, "listener.0.0.0.0_15443.downstream_cx_active", true},
		{mesh.EastWest, "listener.0.0.0.0_15443.downstream_global_cx_overflow", true},
		{mesh.EastWest, "listener.0.0.0.0_15443.downstream_pre_cx_active", true},
		{mesh.EastWest, "listener.0.0.0.0_15443.downstream_pre_cx_timeout", true},
	}
	for _, test := range tests {
		got := false
		for _, p := range stats(test.kind).GetStatsMatcher().GetInclusionList().GetPatterns() {
			got = got || regexp.MustCompile(`^(?:`+p.GetSafeRegex().GetRegex()+`)$`).MatchString(test.name)
		}
		if got != test.want {
			t.Errorf("%s %s: kept %v, want %v", test.kind, test.name, got, test.want)
		}
	}
}

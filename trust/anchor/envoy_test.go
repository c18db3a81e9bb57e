package anchor_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
)

// TestEnvoy proves on the real Envoy what the Go tests cannot: that an anchor works as its trusted_ca, that members get
// in, and that the evicted and every hostile leaf stay out.
func TestEnvoy(t *testing.T) {
	w := newWorld(t)
	server := forge(t, w.east, shape{names: []asn1.RawValue{uri("spiffe://east.fed.test/ns/shop/sa/reviews")}})
	members := []mesh.ClusterName{"east", "west"}
	for i := range 998 { // as many as a document may hold: the anchor must not be too large for Envoy
		members = append(members, mesh.ClusterName(fmt.Sprintf("cluster-%d", i)))
	}
	socket := startEnvoy(t, server, w.anchor(t, members...), anchor.SANPattern)

	v, err := anchor.NewVerifier(w.anchor(t, "east", "west"), nil)
	must(t, err)
	get := func(c tls.Certificate) (int, error) {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
		tc := tls.Client(conn, anchor.TLS{
			Verifier:    func() *anchor.Verifier { return v },
			Certificate: func() (*tls.Certificate, error) { return &c, nil },
			Allow:       anchor.WorkloadOf("east.fed.test"),
		}.Client())
		req, _ := http.NewRequest("GET", "http://x/", nil)
		if err := req.Write(tc); err != nil {
			return 0, err
		}
		resp, err := http.ReadResponse(bufio.NewReader(tc), req)
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
		return resp.StatusCode, nil
	}

	for _, id := range []string{good, "spiffe://west.fed.test/ns/a/sa/b.c"} {
		if code, err := get(forge(t, w.west, shape{names: []asn1.RawValue{uri(id)}})); code != 200 {
			t.Fatalf("member %s: status %d, error %v; want 200", id, code, err)
		}
	}
	for _, a := range attacks(t, w) {
		t.Run(a.why, func(t *testing.T) {
			code, err := get(a.cert)
			if accepted := err == nil; accepted != a.envoyAccepts {
				t.Errorf("accepted %v (status %d, error %v), want %v", accepted, code, err, a.envoyAccepts)
			}
		})
	}
}

// startEnvoy runs an Envoy that answers 200 to every client its TLS context lets in; it returns the listener's socket.
func startEnvoy(t *testing.T, server tls.Certificate, anchorPEM []byte, pattern string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "anchor") // short: a Unix socket's path has 108 bytes at most
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	var chain, key bytes.Buffer
	for _, der := range server.Certificate {
		must(t, pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	must(t, err)
	must(t, pem.Encode(&key, &pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	socket := filepath.Join(dir, "l.sock")
	config, err := json.Marshal(envoyConfig(socket, chain.String(), key.String(), string(anchorPEM), pattern))
	must(t, err)
	file := filepath.Join(dir, "envoy.json")
	must(t, os.WriteFile(file, config, 0o600))

	var log bytes.Buffer
	cmd := exec.Command(envoyPath(t), "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning")
	cmd.Stdout, cmd.Stderr = &log, &log
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("envoy's log:\n%s", log.String())
		}
	})
	deadline := time.After(60 * time.Second)
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		select {
		case <-poll.C:
		case err := <-ended:
			ended <- err
			t.Fatalf("envoy ended: %v\n%s", err, log.String())
		case <-deadline:
			t.Fatal("envoy does not listen after 60 s")
		}
	}
}

// envoyPath finds the pinned Envoy as the product does.
func envoyPath(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("ISTHMUS_ENVOY"); p != "" {
		return p
	}
	p, err := filepath.Abs("../../.tools/envoy")
	must(t, err)
	if _, err := os.Stat(p); err != nil {
		t.Fatalf("no Envoy: %v; fetch it with: make envoy", err)
	}
	return p
}

func envoyConfig(socket, chain, key, trusted, pattern string) any {
	type m = map[string]any
	inline := func(s string) m { return m{"inline_string": s} }
	tlsContext := m{
		"@type":                                "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
		"require_client_certificate":           true,
		"disable_stateless_session_resumption": true,
		"disable_stateful_session_resumption":  true,
		"common_tls_context": m{
			"tls_params":       m{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
			"tls_certificates": []m{{"certificate_chain": inline(chain), "private_key": inline(key)}},
			"validation_context": m{
				"trusted_ca":                    inline(trusted),
				"match_typed_subject_alt_names": []m{{"san_type": "URI", "matcher": m{"safe_regex": m{"regex": pattern}}}},
			},
		},
	}
	hcm := m{
		"@type":       "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix": "x",
		"route_config": m{"virtual_hosts": []m{{"name": "x", "domains": []string{"*"}, "routes": []m{
			{"match": m{"prefix": "/"}, "direct_response": m{"status": 200}}}}}},
		"http_filters": []m{{"name": "router", "typed_config": m{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}},
	}
	return m{"static_resources": m{"listeners": []m{{
		"name":    "x",
		"address": m{"pipe": m{"path": socket, "mode": 0o600}},
		"filter_chains": []m{{
			"transport_socket": m{"name": "tls", "typed_config": tlsContext},
			"filters":          []m{{"name": "hcm", "typed_config": hcm}},
		}},
	}}}, "node": m{"id": fmt.Sprintf("test-%d", os.Getpid()), "cluster": "test"}}
}

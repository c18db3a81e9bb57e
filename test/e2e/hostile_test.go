package e2e

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// playHostile is the attacker's program: it dials args[0] with server name args[1], shows the
// certificate in file args[2], sends one request and prints what came back.
func playHostile(args []string) error {
	address, sni, file := args[0], args[1], args[2]
	controlPlane := !strings.Contains(sni, "outbound_")
	cert, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		fmt.Println("refused: connect:", err)
		return nil
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	config := &tls.Config{
		ServerName: sni, MinVersion: tls.VersionTLS13,
		// The attacker does not care who answers. GetClientCertificate shows the certificate
		// whatever authorities the server asks for.
		InsecureSkipVerify:   true, //nolint:gosec // see above
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}
	if controlPlane {
		config.NextProtos = []string{"h2"}
	}
	c := tls.Client(conn, config)
	if controlPlane { // a member is answered with HTTP/2 settings (RFC 9113 §3.4)
		frame := make([]byte, 9)
		_, err := c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		if err == nil {
			_, err = io.ReadFull(c, frame)
		}
		if err != nil {
			fmt.Println("refused: control plane:", err)
			return nil
		}
		fmt.Println("answered: frame", frame[3])
		return nil
	}
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", strings.TrimPrefix(sni, "s0.")); err != nil {
		fmt.Println("refused: handshake:", err)
		return nil
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		fmt.Println("refused: response:", err)
		return nil
	}
	fmt.Println("answered:", resp.StatusCode)
	return nil
}

// intermediate is a cluster's signing key, stolen from its folder.
type intermediate struct {
	cert  *x509.Certificate
	key   any
	chain []byte // PEM
}

func steal(t *testing.T, d *demo, cluster string) intermediate {
	t.Helper()
	folder := filepath.Join(d.dir, cluster, "trust")
	chain, err := os.ReadFile(filepath.Join(folder, "intermediate.pem"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(folder, "intermediate.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(chain)
	keyBlock, _ := pem.Decode(raw)
	if block == nil || keyBlock == nil {
		t.Fatalf("no PEM in %s", folder)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return intermediate{cert, key, pem.EncodeToMemory(block)}
}

// leaf issues what a thief of the key could issue, into a file.
func (i intermediate) leaf(t *testing.T, uris, dns []string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "thief"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames: dns,
	}
	for _, u := range uris {
		parsed, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, parsed)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, i.cert, key.Public(), i.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	err = errors.Join(pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "leaf.pem")
	// The chain stands between leaf and key: LoadX509KeyPair takes certificates in order.
	if err := os.WriteFile(file, append(b.Bytes(), i.chain...), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestHostile holds up forged server names and forged leaves to a live gateway and a
// live sidecar. Each has a counterpart that must be answered, so that a refusal proves something.
func TestHostile(t *testing.T) {
	d := up(t, "--clusters", "2")
	fed := d.doc.Federation
	east := steal(t, d, "east")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	gateway := d.cluster(t, "west").Gateway
	attack := func(cluster, address, sni, file string) string {
		t.Helper()
		r := d.once(t, cluster, "attacker", "hostile", self, address, sni, file)
		if r.code != 0 {
			t.Fatalf("the attacker's program: exit %d\n%s%s", r.code, r.stdout, r.stderr)
		}
		return strings.TrimSpace(r.stdout)
	}
	member := "spiffe://east." + fed + "/ns/shop/sa/caller"
	good := east.leaf(t, []string{member}, nil)
	ratings := "s0.outbound_.8080_._.ratings.shop.svc.clusterset.local"

	t.Run("forged server name", func(t *testing.T) {
		if got := attack("east", gateway, ratings, good); got != "answered: 200" {
			t.Fatalf("an exported slot with a valid leaf: %s", got)
		}
		for _, sni := range []string{
			"s0.outbound_.8080_._.payroll.shop.svc.clusterset.local",
			"s0.outbound_.8080_._.payroll.shop.svc.cluster.local",
			"outbound_.8080_._.payroll.shop.svc.cluster.local",
			"s0.outbound_.8080_._.nosuch.shop.svc.clusterset.local",
		} {
			if got := attack("east", gateway, sni, good); !strings.HasPrefix(got, "refused: ") {
				t.Errorf("server name %s: %s", sni, got)
			}
		}
	})

	leaves := map[string]string{
		"wrong cluster":       east.leaf(t, []string{"spiffe://west." + fed + "/ns/shop/sa/caller"}, nil),
		"upper-case host":     east.leaf(t, []string{"spiffe://EAST." + fed + "/ns/shop/sa/caller"}, nil),
		"two URIs":            east.leaf(t, []string{member, "spiffe://west." + fed + "/ns/shop/sa/caller"}, nil),
		"a DNS name":          east.leaf(t, []string{member}, []string{"ratings.shop.svc.clusterset.local"}),
		"no path":             east.leaf(t, []string{"spiffe://east." + fed}, nil),
		"a port in the host":  east.leaf(t, []string{"spiffe://east." + fed + ":1/ns/shop/sa/caller"}, nil),
		"no name at all":      east.leaf(t, nil, nil),
		"another federation":  east.leaf(t, []string{"spiffe://east.other.test/ns/shop/sa/caller"}, nil),
		"a federation stream": east.leaf(t, []string{"spiffe://west." + fed + "/isthmus/federation"}, nil),
	}
	sidecar := podAddress(t, d, "west", "ratings-1") + ":8080"
	if got := attack("west", sidecar, "outbound_.8080_._.ratings.shop.svc.clusterset.local", good); got != "answered: 200" {
		t.Fatalf("a live sidecar with a valid leaf: %s", got)
	}
	stream := east.leaf(t, []string{"spiffe://east." + fed + "/isthmus/federation"}, nil)
	if got := attack("east", gateway, "west."+fed, stream); got != "answered: frame 4" {
		t.Fatalf("a control plane with a member's leaf: %s", got)
	}
	if got := attack("east", gateway, "west."+fed, good); !strings.HasPrefix(got, "refused: ") {
		t.Errorf("a control plane with a workload's leaf: %s", got)
	}
	for what, file := range leaves {
		t.Run(what, func(t *testing.T) {
			if got := attack("east", gateway, ratings, file); !strings.HasPrefix(got, "refused: ") {
				t.Errorf("through the gateway: %s", got)
			}
			if got := attack("west", sidecar, "outbound_.8080_._.ratings.shop.svc.clusterset.local", file); !strings.HasPrefix(got, "refused: ") {
				t.Errorf("at the sidecar: %s", got)
			}
			if got := attack("east", gateway, "west."+fed, file); !strings.HasPrefix(got, "refused: ") {
				t.Errorf("at the control plane behind the gateway: %s", got)
			}
		})
	}
}

// podAddress is the address of an instance, from its WorkloadEntry.
func podAddress(t *testing.T, d *demo, cluster, instance string) string {
	t.Helper()
	var doc struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
			Spec struct {
				Address string `json:"address"`
			} `json:"spec"`
		} `json:"items"`
	}
	decode(t, "get workloadentry", d.isthmus(t, cluster, "get", "workloadentry", "-n", "shop", "-o", "json"), &doc)
	for _, e := range doc.Items {
		if e.Metadata.Name == instance {
			return e.Spec.Address
		}
	}
	t.Fatalf("no WorkloadEntry of %s in %s", instance, cluster)
	return ""
}

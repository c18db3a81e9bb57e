package etcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"isthmus.dev/isthmus/internal/hint"
)

// pki writes an authority and a certificate for 127.0.0.1 and for clients to dir.
func pki(t *testing.T, dir string) (cert, key, ca string) {
	t.Helper()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "etcd"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: root.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, keys[0].Public(), keys[0])
	if err != nil {
		t.Fatal(err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, keys[1].Public(), keys[0])
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(keys[1])
	if err != nil {
		t.Fatal(err)
	}
	return write("cert.pem", "CERTIFICATE", leafDER), write("key.pem", "PRIVATE KEY", keyDER), write("ca.pem", "CERTIFICATE", rootDER)
}

// TestExternal uses a server that listens with mTLS, as an outside cluster does.
func TestExternal(t *testing.T) {
	cert, key, ca := pki(t, t.TempDir())
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := url.URL{Scheme: "https", Host: probe.Addr().String()}
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	run := shortDir(t)
	trap := newTrap(slog.New(slog.DiscardHandler))
	c := serverConfig(EmbeddedConfig{Dir: filepath.Join(t.TempDir(), "etcd"), RunDir: run}, trap)
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{address}, []url.URL{address}
	c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile, c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth = cert, key, ca, true
	c.MaxTxnOps = embed.DefaultMaxTxnOps
	e, err := startServer(t.Context(), c, trap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	good := ExternalConfig{Endpoints: []string{address.String()}, Cert: cert, Key: key, CA: ca, DialTimeout: time.Second}
	client, err := External(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	store := NewStore(client)
	if _, err := store.Put(t.Context(), object("a"), []byte("{}"), Absent); err != nil {
		t.Error(err)
	}
	var ops []Op
	for range 2 * embed.DefaultMaxTxnOps {
		ops = append(ops, Op{Name: object("s" + big.NewInt(int64(len(ops))).String()), JSON: []byte("{}")})
	}
	if _, err := store.Commit(t.Context(), ops...); hint.CodeOf(err) != "too_many_objects" || hint.Of(err) == "" {
		t.Errorf("more than an outside server takes at once: %v, code %q", err, hint.CodeOf(err))
	}
	stranger := good
	stranger.Cert, stranger.Key, _ = pki(t, t.TempDir())
	other := good
	_, _, other.CA = pki(t, t.TempDir())
	nobody := good
	nobody.Endpoints = []string{"https://127.0.0.1:1"}
	for why, config := range map[string]ExternalConfig{"a client of another authority": stranger, "a server of another authority": other, "nobody there": nobody} {
		if client, err := External(t.Context(), config); err == nil {
			_ = client.Close()
			t.Errorf("%s: connected", why)
		} else if hint.Of(err) == "" {
			t.Errorf("%s: no hint with %v", why, err)
		}
	}
}

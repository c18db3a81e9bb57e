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
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// playHabit are programs with habits that a proxy in between easily breaks. Servers listen on args[0], clients call it;
// a client prints what it saw.
//
//	count-server, count-client      the client ends its side first, as rsync and netcat do, then the server answers
//	upgrade-server, upgrade-client  HTTP/1.1 that becomes another protocol, in which the server speaks first
//	tls-server, tls-client          TLS of the application's own; args[1] is the file of its certificate
//	names                           args are names with types of records, NAME/TYPE: what the pod's resolver says of each
func playHabit(role string, args []string) error {
	switch role {
	case "count-server":
		return accept(args[0], func(c net.Conn) {
			n, _ := io.Copy(io.Discard, c)
			fmt.Fprintf(c, "got %d", n)
		})
	case "count-client":
		for _, size := range []int{1, 200_000, 3_000_000} {
			c, err := net.DialTimeout("tcp", args[0], 10*time.Second)
			if err != nil {
				return err
			}
			_, sent := c.Write(make([]byte, size))
			answer, err := io.ReadAll(endSide(c, 10*time.Second))
			if err := errors.Join(sent, err, c.Close()); err != nil {
				return fmt.Errorf("%d bytes: %w", size, err)
			}
			fmt.Printf("sent %d %s\n", size, answer)
		}
		return nil
	case "upgrade-server":
		return http.ListenAndServe(args[0], http.HandlerFunc(upgrade))
	case "upgrade-client":
		return upgradeClient(args[0])
	case "tls-server":
		return tlsServer(args[0], args[1])
	case "tls-client":
		trusted, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(trusted)
		client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
		reply, err := client.Get("https://" + args[0] + "/")
		if err != nil {
			return err
		}
		fmt.Println(reply.StatusCode, reply.TLS.PeerCertificates[0].Subject.CommonName)
		return reply.Body.Close()
	case "names":
		for _, question := range args {
			fmt.Println(question, resolve(question))
		}
		return nil
	}
	return fmt.Errorf("no role %q", role)
}

// endSide ends what a connection sends, and bounds how long it is read.
func endSide(c net.Conn, limit time.Duration) net.Conn {
	_ = c.(*net.TCPConn).CloseWrite() // a connection that is gone says so to its reader
	_ = c.SetReadDeadline(time.Now().Add(limit))
	return c
}

func accept(address string, serve func(net.Conn)) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

func upgrade(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		fmt.Fprint(w, "plain")
		return
	}
	c, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\nhello\n", r.Header.Get("Upgrade"))
	line, _ := buffered.ReadString('\n')
	fmt.Fprintf(c, "echo %s", line)
}

func upgradeClient(address string) error {
	for _, more := range []string{"Connection: close\r\n", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"} {
		c, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "GET /chat HTTP/1.1\r\nHost: %s\r\n%s\r\n", address, more)
		r := bufio.NewReader(c)
		reply, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		fmt.Println(reply.StatusCode)
		if reply.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		hello, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		fmt.Fprintln(c, "ping")
		echo, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		fmt.Print(hello, echo)
	}
	return nil
}

// tlsServer serves with a certificate that it makes for its clusterset host and writes to a file.
func tlsServer(address, file string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	shape := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the application's own"}, DNSNames: []string{"vault.strangers.svc.clusterset.local"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, shape, shape, key.Public(), key)
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", address, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return err
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "secret") }))
}

// resolve asks the server that resolv.conf(5) names, as any program does.
func resolve(question string) string {
	conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return err.Error()
	}
	name, kind, _ := strings.Cut(question, "/")
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.StringToType[kind])
	reply, err := dns.Exchange(m, net.JoinHostPort(conf.Servers[0], conf.Port))
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(dns.RcodeToString[reply.Rcode], " ", len(reply.Answer))
}

// TestHabits: programs do over the mesh what they do without one, from the server's own cluster and from another.
func TestHabits(t *testing.T) {
	d := up(t, "--clusters", "2", "--no-app")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	certificate := filepath.Join(t.TempDir(), "certificate.pem")
	for _, tc := range []struct {
		why, service, port, role string
		args                     []string
		want                     string
	}{
		{"the client ends its side first", "half", "tcp:7100", "count", nil, "sent 1 got 1\nsent 200000 got 200000\nsent 3000000 got 3000000\n"},
		{"HTTP becomes another protocol", "chat", "main:8100", "upgrade", nil, "200\n101\nhello\necho ping\n"},
		{"TLS of the application's own", "vault", "main:8443:tcp", "tls", []string{certificate}, "200 the application's own\n"},
	} {
		t.Run(tc.why, func(t *testing.T) {
			number := strings.Split(tc.port, ":")[1]
			server := d.workload(t, "west", tc.role+"-server", append([]string{"--name", tc.service + "-1", "-n", "strangers",
				"--service", tc.service, "--port", tc.port, "--export", "--", self, "0.0.0.0:" + number}, tc.args...)...)
			for _, from := range []string{"west", "east"} {
				argv := append([]string{self, tc.service + ".strangers.svc.clusterset.local:" + number}, tc.args...)
				eventually(t, 60*time.Second, func() string {
					r := d.once(t, from, tc.service+"-client", tc.role+"-client", argv...)
					if r.code != 0 || r.stdout != tc.want {
						return fmt.Sprintf("from %s: exit %d, got %q, want %q\n%s\nserver: %s", from, r.code, r.stdout, tc.want, r.stderr, server.output())
					}
					return ""
				})
			}
		})
	}
	t.Run("names as resolvers ask for them", func(t *testing.T) { asksForNames(t, d, self) })
}

// asksForNames: what is not there is told apart from what has no record of that type. A resolver that is told that a name
// does not exist gives up for every type.
func asksForNames(t *testing.T, d *demo, self string) {
	d.apply(t, "west", "apiVersion: v1\nkind: Service\nmetadata: {name: named, namespace: shop}\n"+
		"spec: {ports: [{name: http, port: 8080}], selector: {app: named}}\n")
	const host = "named.shop.svc.cluster.local"
	questions := []struct{ question, want string }{
		{host + "/A", "NOERROR 1"},
		{strings.ToUpper(host) + "/A", "NOERROR 1"},
		{host + "/AAAA", "NOERROR 0"},
		{host + "/SRV", "NOERROR 0"},
		{host + "/HTTPS", "NOERROR 0"},
		{"named/A", "NOERROR 1"},
		{"named.shop/A", "NOERROR 1"},
		{"named.shop.svc/A", "NOERROR 1"},
		{host + ".shop.svc.cluster.local/A", "NXDOMAIN 0"}, // what a search list makes of it
		{"_http._tcp." + host + "/SRV", "NXDOMAIN 0"},
		{"named-1." + host + "/A", "NXDOMAIN 0"},
		{"nothing.shop.svc.clusterset.local/A", "NXDOMAIN 0"},
	}
	argv, want := []string{self}, new(bytes.Buffer)
	for _, q := range questions {
		argv = append(argv, q.question)
		fmt.Fprintln(want, q.question, q.want)
	}
	eventually(t, 30*time.Second, func() string {
		r := d.once(t, "west", "names", "names", argv...)
		if r.code != 0 || r.stdout != want.String() {
			return fmt.Sprintf("exit %d, got\n%s\nwant\n%s\n%s", r.code, r.stdout, want, r.stderr)
		}
		return ""
	})
}

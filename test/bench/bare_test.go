package bench

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/internal/meshtest"
	"isthmus.dev/isthmus/xds"
)

// bareEnv makes this test binary the server of bare; its value is the folder with what it needs.
const bareEnv = "ISTHMUS_BENCH_BARE"

// bareServer sends one message of a size to every stream for each line it reads from standard input, and ends with it.
type bareServer struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	message *discoveryv3.DeltaDiscoveryResponse
	mu      sync.Mutex // guards streams
	streams []chan struct{}
}

// DeltaAggregatedResources serves one stream.
func (s *bareServer) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	send := make(chan struct{}, 1)
	s.mu.Lock()
	s.streams = append(s.streams, send)
	s.mu.Unlock()
	if err := stream.Send(&discoveryv3.DeltaDiscoveryResponse{}); err != nil {
		return err
	}
	for {
		select {
		case <-send:
			if err := stream.Send(s.message); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

// serveBare is the process.
func serveBare(dir string) {
	fail := func(err error) {
		if err != nil {
			log.Fatal("bare server: ", err)
		}
	}
	certificate, roots := readPKI(dir, "server", fail)
	n, err := strconv.Atoi(line(filepath.Join(dir, "size")))
	fail(err)
	server := &bareServer{message: &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: xds.EndpointType, Nonce: "1",
		Resources: []*discoveryv3.Resource{{Name: "bare", Version: "1", Resource: &anypb.Any{TypeUrl: xds.EndpointType, Value: make([]byte, n)}}},
	}}
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	fail(err)
	serving := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(serving, server)
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			server.mu.Lock()
			for _, send := range server.streams {
				send <- struct{}{}
			}
			server.mu.Unlock()
		}
		serving.Stop()
	}()
	fail(serving.Serve(l))
}

// bare measures what a gRPC server that does nothing else needs to send size bytes to n mTLS streams, each of a client
// with a certificate of its own: the least that any control plane needs.
func bare(b *testing.B, n, size, rounds int) update {
	b.Helper()
	dir := meshtest.ShortDir(b)
	writePKI(b, dir, n)
	write(b, filepath.Join(dir, "size"), []byte(strconv.Itoa(max(0, size-200)))) // names and types are some 200 bytes
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env, cmd.Stderr = append(os.Environ(), bareEnv+"="+dir), os.Stderr
	tell, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = tell.Close(); _ = cmd.Wait() }()

	ctx, cancel := within(b)
	defer cancel()
	arrived := make(chan time.Time, n)
	for i := range n {
		listen(b, ctx, dir, "client"+strconv.Itoa(i), arrived)
	}
	for range n { // each stream is there
		<-arrived
	}
	var u update
	cpu := used(b, cmd.Process.Pid)
	for range rounds {
		time.Sleep(pause)
		start, last := time.Now(), time.Time{}
		if _, err := io.WriteString(tell, "\n"); err != nil {
			b.Fatal(err)
		}
		for range n {
			select {
			case at := <-arrived:
				if at.After(last) {
					last = at
				}
			case <-ctx.Done():
				b.Fatal("a bare message did not arrive")
			}
		}
		u.ms = append(u.ms, float64(last.Sub(start).Microseconds())/1000)
	}
	u.cpuMs = float64((used(b, cmd.Process.Pid) - cpu).Milliseconds()) / float64(rounds)
	return u
}

// listen is one client: it tells when each message has been read, until ctx ends.
func listen(b *testing.B, ctx context.Context, dir, name string, arrived chan<- time.Time) {
	b.Helper()
	certificate, roots := readPKI(dir, name, func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	})
	conn, err := grpc.NewClient("unix:"+filepath.Join(dir, "socket"), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, RootCAs: roots, ServerName: "bare"})))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		b.Fatal(err)
	}
	go func() { // ends with the connection
		for {
			if _, err := stream.Recv(); err != nil {
				return
			}
			arrived <- time.Now()
		}
	}()
}

// writePKI makes an authority, a server's certificate and n clients'.
func writePKI(b *testing.B, dir string, n int) {
	b.Helper()
	names := []string{"ca", "server"}
	for i := range n {
		names = append(names, "client"+strconv.Itoa(i))
	}
	var authority *x509.Certificate
	var signer *ecdsa.PrivateKey
	for i, name := range names {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"bare"}, NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if i == 0 {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
			authority, signer = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, authority, key.Public(), signer)
		if err != nil {
			b.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			b.Fatal(err)
		}
		write(b, filepath.Join(dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		write(b, filepath.Join(dir, name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	}
}

func readPKI(dir, name string, fail func(error)) (tls.Certificate, *x509.CertPool) {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
	fail(err)
	authority, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	fail(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	return certificate, roots
}

func write(b *testing.B, path string, text []byte) {
	b.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		b.Fatal(err)
	}
}

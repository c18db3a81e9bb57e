package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/demo/shop/answer"
	"isthmus.dev/isthmus/demo/shop/shopv1"
)

var east = answer.Instance{Service: "ratings", Version: "v1", Cluster: "east", Zone: "eu-a", Instance: "ratings-1"}

const callerID = "spiffe://west.shop.example/ns/shop/sa/caller"

// start serves protocol on a loopback port and returns its address and what ends it; the server must end without an
// error.
func start(t *testing.T, config Config, protocol Protocol) (address string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, Bound{listener, protocol}) }()
	stopped := false
	stop = func() {
		cancel()
		if !stopped {
			stopped = true
			if err := <-done; err != nil {
				t.Errorf("Serve(%s) = %v, want nil after its context ended", protocol, err)
			}
		}
	}
	t.Cleanup(stop)
	return listener.Addr().String(), stop
}

// ask sends one HTTP request and decodes the answer.
func ask(t *testing.T, request *http.Request) (int, answer.Answer, []byte) {
	t.Helper()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var a answer.Answer
	if len(body) > 0 {
		if err := json.Unmarshal(body, &a); err != nil {
			t.Fatalf("answer %q: %v", body, err)
		}
	}
	return response.StatusCode, a, body
}

func request(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestHTTPAnswerSaysWhoAnsweredAndWhatArrived(t *testing.T) {
	address, _ := start(t, Config{Instance: east}, HTTP)
	r := request(t, "GET", "http://"+address+"/a/b?x=1", nil)
	r.Header.Set("X-Forwarded-Client-Cert", `Hash=00;Subject="CN=a,OU=b";URI=`+callerID)
	r.Header.Add("X-Twice", "1")
	r.Header.Add("X-Twice", "2")
	code, got, _ := ask(t, r)
	peer := callerID
	want := answer.Answer{Instance: east, Peer: &peer, Method: "GET", Path: "/a/b", Headers: map[string]string{
		"host": address, "x-forwarded-client-cert": r.Header.Get("X-Forwarded-Client-Cert"), "x-twice": "1, 2",
		"user-agent": "Go-http-client/1.1", "accept-encoding": "gzip",
	}}
	if diff := cmp.Diff(want, got); diff != "" || code != 200 {
		t.Errorf("status %d, answer (-want +got):\n%s", code, diff)
	}
}

func TestHTTPShapes(t *testing.T) {
	address, _ := start(t, Config{Instance: east}, HTTP)
	url := "http://" + address + "/"

	if code, a, _ := ask(t, request(t, "GET", url+"?status=503", nil)); code != 503 || a.Service != "ratings" {
		t.Errorf("status=503: status %d from %q, want 503 from ratings", code, a.Service)
	}
	if code, _, body := ask(t, request(t, "GET", url+"?status=204", nil)); code != 204 || len(body) != 0 {
		t.Errorf("status=204: status %d with %d bytes, want no body", code, len(body))
	}
	if _, _, body := ask(t, request(t, "GET", url+"?size=10k", nil)); len(body) != 10240 {
		t.Errorf("size=10k: %d bytes, want 10240", len(body))
	}
	begin := time.Now()
	ask(t, request(t, "GET", url+"?delay=30ms", nil))
	if took := time.Since(begin); took < 30*time.Millisecond {
		t.Errorf("delay=30ms: answered after %s", took)
	}
	for _, bad := range []string{"?status=999", "?delay=1h", "?size=1g"} {
		if code, a, _ := ask(t, request(t, "GET", url+bad, nil)); code != 400 || a.Error == "" {
			t.Errorf("%s: status %d, error %q; want 400 and why", bad, code, a.Error)
		}
	}
}

func TestHTTPCountsWhatIsPosted(t *testing.T) {
	address, _ := start(t, Config{Instance: east}, HTTP)
	for i := int64(1); i <= 2; i++ {
		_, a, _ := ask(t, request(t, "POST", "http://"+address+"/", bytes.NewReader(make([]byte, 70_000))))
		if a.Received != 70_000 || a.Posts != i || a.Method != "POST" {
			t.Errorf("POST %d: received %d, posts %d, method %q", i, a.Received, a.Posts, a.Method)
		}
	}
	if _, a, _ := ask(t, request(t, "GET", "http://"+address+"/", nil)); a.Received != 0 || a.Posts != 2 {
		t.Errorf("GET after two POSTs: received %d, posts %d; want 0, 2", a.Received, a.Posts)
	}
}

func TestHTTP2WithPriorKnowledge(t *testing.T) {
	address, _ := start(t, Config{Instance: east}, HTTP)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request(t, "GET", "http://"+address+"/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.ProtoMajor != 2 || response.StatusCode != 200 {
		t.Errorf("answer %s over %s, want 200 over HTTP/2", response.Status, response.Proto)
	}
}

func TestHTTPFinishesOpenRequestsWhenStopped(t *testing.T) {
	address, stop := start(t, Config{Instance: east}, HTTP)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The request is under way once the server has asked for the body.
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
	lines := bufio.NewReader(conn)
	if line, err := lines.ReadString('\n'); err != nil || !strings.Contains(line, "100") {
		t.Fatalf("first line %q, %v; want 100 Continue", line, err)
	}
	lines.ReadString('\n')
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop() }()
	for { // until no new connection is taken
		c, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		c.Close()
	}
	io.WriteString(conn, "ok")
	response, err := http.ReadResponse(lines, nil)
	if err != nil || response.StatusCode != 200 {
		t.Fatalf("the open request's answer: %v, %v; want 200", response, err)
	}
	response.Body.Close()
	<-stopped
}

func dialEcho(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestGRPCAnswersAsHTTPDoes(t *testing.T) {
	address, _ := start(t, Config{Instance: east}, GRPC)
	client := shopv1.NewEchoClient(dialEcho(t, address))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-client-cert", "Hash=0;URI="+callerID, "x-a", "1")
	got, err := client.Call(ctx, &shopv1.CallRequest{Body: []byte("12345"), Size: 10240})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetPeer() != callerID || got.GetHeaders()["x-a"] != "1" || got.GetInstance() != "ratings-1" || got.GetZone() != "eu-a" ||
		got.GetPath() != "/isthmus.shop.v1.Echo/Call" || got.GetMethod() != "POST" || got.GetReceived() != 5 ||
		got.GetPosts() != 1 || len(got.GetPadding()) != 10240 {
		got.Padding = nil
		t.Errorf("answer %v", got)
	}
	if got, err := client.Call(t.Context(), &shopv1.CallRequest{}); err != nil || got.Peer != nil {
		t.Errorf("without a sidecar's header: peer %v, error %v; want none", got.GetPeer(), err)
	}
	for _, tc := range []struct {
		request *shopv1.CallRequest
		want    codes.Code
	}{
		{&shopv1.CallRequest{Status: 14}, codes.Unavailable},
		{&shopv1.CallRequest{DelayMs: 60_001}, codes.InvalidArgument},
		{&shopv1.CallRequest{Size: answer.MaxSize + 1}, codes.InvalidArgument},
	} {
		if _, err := client.Call(t.Context(), tc.request); status.Code(err) != tc.want {
			t.Errorf("Call(%v) = %v, want %s", tc.request, err, tc.want)
		}
	}
}

func TestGRPCHasHealthAndReflection(t *testing.T) {
	address, _ := start(t, Config{Instance: east}, GRPC)
	conn := dialEcho(t, address)
	for _, service := range []string{"", "isthmus.shop.v1.Echo"} {
		got, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil || got.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q = %v, %v", service, got.GetStatus(), err)
		}
	}
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "isthmus.shop.v1.Echo"},
	}); err != nil {
		t.Fatal(err)
	}
	if got, err := stream.Recv(); err != nil || len(got.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
		t.Errorf("reflection of Echo = %v, %v", got, err)
	}
}

func TestTCPServerSpeaksFirstThenEchoes(t *testing.T) {
	address, stop := start(t, Config{Instance: east, Grace: time.Millisecond}, TCP)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	lines := bufio.NewReader(conn)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var a answer.Answer
	if err := json.Unmarshal([]byte(line), &a); err != nil || a.Instance != east || !strings.Contains(line, `"peer":null`) {
		t.Errorf("greeting %q: %v", line, err)
	}
	for _, text := range []string{"hello\n", "\n", strings.Repeat("x", 60<<10) + "\n"} {
		io.WriteString(conn, text)
		if got, err := lines.ReadString('\n'); err != nil || got != text {
			t.Errorf("echo of %d bytes: %d bytes, %v", len(text), len(got), err)
		}
	}
	stop() // ends the session after the grace
	if _, err := lines.ReadByte(); err == nil {
		t.Error("the connection is still open after Serve returned")
	}
}

func TestTCPEndsALineThatIsTooLong(t *testing.T) {
	address, _ := start(t, Config{Instance: east}, TCP)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go io.Copy(conn, strings.NewReader(strings.Repeat("x", 1<<20)))
	lines := bufio.NewReader(conn)
	lines.ReadString('\n')
	if got, err := lines.ReadString('\n'); err == nil || len(got) > 0 {
		t.Errorf("a line without end was answered with %d bytes, %v; want the connection closed", len(got), err)
	}
}

func TestStorefrontReportsWhatAnswered(t *testing.T) {
	httpAddress, _ := start(t, Config{Instance: east}, HTTP)
	grpcAddress, _ := start(t, Config{Instance: answer.Instance{Service: "inventory", Cluster: "west", Instance: "inventory-1"}}, GRPC)
	tcpAddress, _ := start(t, Config{Instance: answer.Instance{Service: "ledger", Cluster: "west", Instance: "ledger-2"}}, TCP)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	address, _ := start(t, Config{
		Instance: answer.Instance{Service: "storefront", Instance: "storefront-1"},
		Calls: []Target{
			{"ratings", HTTP, httpAddress}, {"inventory", GRPC, grpcAddress}, {"ledger", TCP, tcpAddress},
			{"reviews", HTTP, closed.Addr().String()}, {"stock", GRPC, closed.Addr().String()}, {"books", TCP, closed.Addr().String()},
		},
	}, HTTP)
	code, a, _ := ask(t, request(t, "GET", "http://"+address+"/", nil))
	if code != 200 {
		t.Errorf("status %d: a storefront answers whatever its suppliers do", code)
	}
	for service, want := range map[string]string{"ratings": "ratings-1", "inventory": "inventory-1", "ledger": "ledger-2"} {
		if got := a.Calls[service]; got.Instance.Instance != want || got.Error != "" {
			t.Errorf("call to %s = %+v, want an answer of %s", service, got, want)
		}
	}
	for _, service := range []string{"reviews", "stock", "books"} {
		if got := a.Calls[service]; got.Error == "" {
			t.Errorf("call to %s = %+v, want why it failed", service, got)
		}
	}
}

func TestServeReportsAPortThatFails(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, err := New(Config{Instance: east})
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	for _, protocol := range []Protocol{HTTP, GRPC, TCP, "udp"} {
		if err := srv.Serve(t.Context(), Bound{listener, protocol}); err == nil {
			t.Errorf("Serve(%s) on a closed listener = nil, want an error", protocol)
		}
	}
}

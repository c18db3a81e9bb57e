package translate_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"isthmus.dev/isthmus/controlplane/allocate"
	. "isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/mesh"
)

// ruled is a lab whose client in east calls two pods of its own cluster under these rules.
func ruled(t *testing.T, pods int, rules string) (l *lab, web string) {
	t.Helper()
	l = newLab(t)
	var addresses []string
	for i := range pods {
		addresses = append(addresses, podIP(i+4))
	}
	east := l.cluster("east", addresses...)
	east.Config.Rules = compiled(t, rules)
	for i := range pods {
		l.server(east, i)
	}
	east.VIPs, _ = allocate.Addresses(nil, []mesh.Host{reviews.LocalHost()})
	return l, l.client(east)[RouteName(reviews.LocalHost(), 8080)]
}

// TestOneAtATime: a pool of one connection with one request waiting bounds what the application sees, though sidecars speak
// HTTP/2 to each other.
func TestOneAtATime(t *testing.T) {
	l, web := ruled(t, 1, `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: r}
spec: {host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}}
`)
	for range 3 {
		var wait sync.WaitGroup
		var mu sync.Mutex
		codes := map[int]int{}
		for range 8 {
			wait.Go(func() {
				resp, err := http.Get("http://" + web + "/?delay=300ms")
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				mu.Lock()
				codes[resp.StatusCode]++
				mu.Unlock()
			})
		}
		wait.Wait()
		if codes[200] < 1 || codes[200] > 2 || codes[503] != 8-codes[200] {
			t.Errorf("of 8 requests at once: %v, want one served, one that waited, the others refused with 503", codes)
		}
	}
	if l.busiest != 1 {
		t.Errorf("the application saw %d requests at once, want 1", l.busiest)
	}
}

// TestBadRequestsOfOne: by default a rule ejects at most a tenth for their answers, so that one caller's bad requests never
// take a whole service away.
func TestBadRequestsOfOne(t *testing.T) {
	l, web := ruled(t, 2, `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: r}
spec: {host: reviews, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3, interval: 0.2s, baseEjectionTime: 60s}}}
`)
	for range 20 {
		if status, _ := l.once(web, "GET", "/?status=503"); status != 503 {
			t.Fatalf("status %d, want the application's own 503", status)
		}
	}
	if by, failed, _ := l.load(web, "GET", 20); len(failed) > 0 {
		t.Errorf("after 20 bad requests: answered by %v, failed %.300q; want 20 of 20 answered", by, failed)
	}
}

// TestMirror: copies go where a rule says, their answers to nobody; a mirror that is not there costs the request nothing.
func TestMirror(t *testing.T) {
	l, web := ruled(t, 1, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews}}]
    mirrors:
    - {destination: {host: payroll}}
    - {destination: {host: payroll, subset: none}}
    - {destination: {host: nowhere}}
    - {destination: {host: payroll, port: {number: 8080}}, percentage: {value: 0}}
`)
	by, failed, _ := l.load(web, "GET", 50)
	if len(failed) > 0 || by["east-0"] != 50 {
		t.Fatalf("50 requests: answered by %v, failed %.300q", by, failed)
	}
	copies := 0
	for start := time.Now(); copies < 50 && time.Since(start) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		l.mu.Lock()
		copies = l.hits["east-0"] - 50 // both services are the same application
		l.mu.Unlock()
	}
	if copies != 50 {
		t.Errorf("%d copies of 50 requests", copies)
	}
}

// TestFault: requests that a rule aborts reach nobody, those that it delays wait, others are as ever.
func TestFault(t *testing.T) {
	l, web := ruled(t, 1, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /aborted}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 418}}
    route: [{destination: {host: reviews}}]
  - match: [{uri: {prefix: /late}}]
    fault: {delay: {percentage: {value: 100}, fixedDelay: 0.4s}}
    route: [{destination: {host: reviews}}]
  - route: [{destination: {host: reviews}}]
`)
	for path, want := range map[string]struct {
		status int
		least  time.Duration
		hits   int
	}{"/aborted": {418, 0, 0}, "/late": {200, 400 * time.Millisecond, 1}, "/other": {200, 0, 1}} {
		l.mu.Lock()
		before := total(l.hits)
		l.mu.Unlock()
		start := time.Now()
		status, _ := l.once(web, "GET", path)
		took := time.Since(start)
		l.mu.Lock()
		hits := total(l.hits) - before
		l.mu.Unlock()
		if status != want.status || took < want.least || hits != want.hits {
			t.Errorf("%s: status %d after %v, seen %d times; want %d after %v or more, seen %d times", path, status, took, hits, want.status, want.least, want.hits)
		}
	}
}

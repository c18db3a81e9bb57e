package netns_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"isthmus.dev/isthmus/demo/netns"
	"isthmus.dev/isthmus/demo/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

// prefix and addr are shorter names.
var (
	prefix = netip.MustParsePrefix
	addr   = netip.MustParseAddr
)

// serve answers every connection in a namespace with the address it came from.
func serve(t *testing.T, ns *netns.Namespace) {
	t.Helper()
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp4", "0.0.0.0:7000")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			from, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			fmt.Fprint(conn, from)
			conn.Close()
		}
	}()
}

// dial connects from a namespace and returns what the server said.
func dial(ns *netns.Namespace, to string, patience time.Duration) (answer string, err error) {
	err = ns.Do(func() error {
		conn, err := net.DialTimeout("tcp4", to+":7000", patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		b, err := io.ReadAll(conn)
		answer = string(b)
		return err
	})
	return answer, err
}

// TestNetwork builds two clusters with the same pod network.
func TestNetwork(t *testing.T) {
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	link, err := netns.NewLink(own, prefix("172.30.0.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	nodes, pods := map[string]*netns.Node{}, map[string]*netns.Namespace{}
	for i, name := range []string{"east", "west"} {
		node, err := link.AddNode(name, prefix(fmt.Sprintf("172.30.0.%d/24", 11+i)), prefix("10.244.0.1/16"))
		if err != nil {
			t.Fatal(err)
		}
		serve(t, node.Namespace)
		nodes[name] = node
		for k := range 2 {
			pod, err := node.AddPod(addr(fmt.Sprintf("10.244.0.%d", 10+k)))
			if err != nil {
				t.Fatal(err)
			}
			serve(t, pod)
			pods[fmt.Sprintf("%s-%d", name, k)] = pod
		}
	}
	check := func(why, from, to, want string) {
		t.Helper()
		if got, err := dial(pods[from], to, 10*time.Second); got != want {
			t.Errorf("%s: from %s to %s: %q, %v; want %q", why, from, to, got, err, want)
		}
	}
	check("loopback is up", "east-0", "127.0.0.1", "127.0.0.1")
	check("pods of a cluster see each other's address", "east-0", "10.244.0.11", "10.244.0.10")
	check("outside, a pod has its node's address", "east-1", "172.30.0.12", "172.30.0.11")
	if _, err := dial(pods["east-0"], "203.0.113.1", time.Second); err == nil {
		t.Error("the tree reaches the world")
	}
	if err := errors.Join(link.Cut("west"), link.Cut("west"), link.Cut("east"), link.Mend("east")); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := dial(pods["east-0"], "172.30.0.12", time.Second); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("to a cluster that is cut off: %v, want silence", err)
	}
	check("a cut leaves the cluster itself alone", "west-0", "10.244.0.11", "10.244.0.10")
	if err := errors.Join(link.Mend("west"), link.Mend("west")); err != nil {
		t.Fatal(err)
	}
	check("mended", "east-0", "172.30.0.12", "172.30.0.11")

	// An address can be used again at once.
	for range 3 {
		pod, err := nodes["east"].AddPod(addr("10.244.0.99"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(nodes["east"].RemovePod(addr("10.244.0.99")), pod.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := nodes["east"].RemovePod(addr("10.244.0.99")); err == nil {
		t.Error("a pod was removed twice")
	}
}

func TestSettings(t *testing.T) {
	ns, err := netns.New(map[string]string{"ipv4/ip_forward": "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	read := func() string {
		var got []byte
		if err := ns.Do(func() (err error) { got, err = os.ReadFile("/proc/sys/net/ipv4/ip_forward"); return err }); err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	if got := read(); got != "1\n" {
		t.Errorf("ip_forward %q, want 1", got)
	}
	if _, err := netns.New(map[string]string{"ipv4/no_such": "1"}); !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.EACCES) {
		t.Errorf("unknown setting: %v", err)
	}
}

// Threads that changed their namespace are gone; this one never did.
func TestThreadsStay(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for range 200 {
		if err := ns.Do(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/proc/self/ns/net", "/proc/thread-self/ns/net"} {
		if after, err := os.Readlink(path); err != nil || after != before {
			t.Errorf("%s is %s, %v; was %s", path, after, err, before)
		}
	}
}

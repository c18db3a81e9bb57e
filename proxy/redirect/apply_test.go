package redirect

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inside marks the test binary that runs in its own network namespace.
const inside = "ISTHMUS_TEST_IN_NAMESPACE"

// Addresses of the pod and of the network beside it.
const (
	podAddress    = "10.244.0.10"
	remoteAddress = "10.244.0.1"
)

// patience bounds every wait; a new link may take seconds to carry packets where the machine is busy.
const patience = 30 * time.Second

// TestInNamespace runs the tests named TestKernel… in a user and a network namespace of their own, so that neither
// root nor any tool is needed and no rule touches the machine.
func TestInNamespace(t *testing.T) {
	if os.Getenv(inside) != "" {
		t.Skip("already there")
	}
	run := func(attributes *syscall.SysProcAttr) (string, error) {
		attributes.Pdeathsig = syscall.SIGKILL
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKernel", "-test.v", "-test.count=1")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = attributes
		output, err := cmd.CombinedOutput()
		return string(output), err
	}
	runtime.LockOSThread() // Pdeathsig is per thread
	defer runtime.UnlockOSThread()
	output, err := run(&syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	})
	if err != nil && output == "" && os.Geteuid() == 0 { // root may be forbidden user namespaces, and needs none
		output, err = run(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET})
	}
	if err != nil {
		t.Fatalf("in namespaces of its own: %v (user namespaces must be allowed, or run as root)\n%s", err, output)
	}
	if n := strings.Count(output, "--- PASS: TestKernel"); n < 5 {
		t.Fatalf("only %d tests ran:\n%s", n, output)
	}
}

// outsideOnly skips what would change the machine's own rules.
func outsideOnly(t *testing.T) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("runs in TestInNamespace")
	}
}

// remote runs functions in the network namespace beside the pod.
type remote struct{ namespace int }

// network makes lo and eth0 of the pod, and the namespace at the other end of eth0.
func network(t *testing.T) *remote {
	t.Helper()
	outsideOnly(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r := &remote{namespace: newNamespace(t)}
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer", PeerNamespace: netlink.NsFd(r.namespace)}))
	up := func(name, address string) {
		link, err := netlink.LinkByName(name)
		must(err)
		if address != "" {
			parsed, err := netlink.ParseAddr(address)
			must(err)
			must(netlink.AddrAdd(link, parsed))
		}
		must(netlink.LinkSetUp(link))
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName("eth0"); err == nil {
			_ = netlink.LinkDel(link)
		}
		must(Remove())
		must(unix.Close(r.namespace))
	})
	r.do(t, func() error { up("lo", ""); up("peer", remoteAddress+"/16"); return nil })
	up("lo", "")
	up("eth0", podAddress+"/16")
	must(netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(remoteAddress)}))
	return r
}

// newNamespace makes a network namespace that lives as long as the descriptor returned.
func newNamespace(t *testing.T) int {
	t.Helper()
	made := make(chan int, 1)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			failed <- fmt.Errorf("unshare: %w", err)
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			failed <- err
			return
		}
		made <- fd
	}()
	select {
	case fd := <-made:
		return fd
	case err := <-failed:
		t.Fatal(err)
		return -1
	}
}

// do runs f on a thread in the remote namespace.
func (r *remote) do(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread does not come back
		if err := unix.Setns(r.namespace, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// listen accepts on address and answers each connection with name and the destination its caller had meant.
func listen(t *testing.T, name, address string) {
	t.Helper()
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				meant, err := originalDst(conn)
				if err != nil {
					meant = err.Error()
				}
				fmt.Fprintf(conn, "%s %s\n", name, meant)
				io.Copy(conn, conn)
			}()
		}
	}()
}

// originalDst is what the sidecar asks the kernel for (SO_ORIGINAL_DST, linux/netfilter_ipv4.h).
func originalDst(conn net.Conn) (string, error) {
	const soOriginalDst = 80
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return "", err
	}
	var request *unix.IPv6Mreq // as large as a sockaddr_in
	var failed error
	if err := raw.Control(func(fd uintptr) {
		request, failed = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, soOriginalDst)
	}); err != nil {
		return "", err
	}
	if errors.Is(failed, unix.ENOENT) {
		return "direct", nil // no connection tracking, so no translation
	}
	if failed != nil {
		return "", failed
	}
	b := request.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3])).String(), nil
}

// ask connects and reads the listener's first line; mark is that of the socket.
func ask(address string, mark int) string {
	conn, err := dial("tcp4", address, mark)
	if err != nil {
		return "error " + err.Error()
	}
	defer conn.Close()
	return firstLine(conn)
}

func dial(network, address string, mark int) (net.Conn, error) {
	dialer := net.Dialer{Timeout: patience, Control: func(_, _ string, raw syscall.RawConn) error {
		if mark == 0 {
			return nil
		}
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) })
		return errors.Join(err, failed)
	}}
	return dialer.Dial(network, address)
}

func firstLine(conn net.Conn) string {
	_ = conn.SetDeadline(time.Now().Add(patience))
	line := make([]byte, 256)
	n, err := conn.Read(line)
	if err != nil {
		return "error " + err.Error()
	}
	return strings.TrimSpace(string(line[:n]))
}

// sidecar listens where the rules send traffic, and applies them.
func sidecar(t *testing.T, config Config) Plan {
	t.Helper()
	listen(t, "outbound", "127.0.0.1:15001")
	listen(t, "inbound", "0.0.0.0:15006")
	listen(t, "dns", "127.0.0.1:15053")
	packets, err := net.ListenPacket("udp4", "127.0.0.1:15053")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { packets.Close() })
	go func() {
		question := make([]byte, 512)
		for {
			n, from, err := packets.ReadFrom(question)
			if err != nil {
				return
			}
			packets.WriteTo(append([]byte("dns "), question[:n]...), from)
		}
	}()
	plan, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := Apply(plan); err != nil {
		t.Fatal(err)
	}
	return plan
}

func TestKernelRedirectsWhatThePodSends(t *testing.T) {
	r := network(t)
	r.do(t, func() error { listen(t, "remote", remoteAddress+":8080"); return nil })
	listen(t, "app", "0.0.0.0:8080")
	sidecar(t, Config{})
	for _, tc := range []struct {
		reason, address string
		mark            int
		want            string
	}{
		{"a virtual address", "240.240.0.10:80", 0, "outbound 240.240.0.10:80"},
		{"a neighbour", remoteAddress + ":8080", 0, "outbound " + remoteAddress + ":8080"},
		{"the sidecar's own connection", remoteAddress + ":8080", DefaultMark, "remote"},
		{"the sidecar picks its own pod", podAddress + ":8080", DefaultMark, "inbound " + podAddress + ":8080"},
		{"the sidecar calls the application", podAddress + ":8080", DefaultInboundMark, "app"},
		{"the sidecar calls loopback", "127.0.0.1:8080", DefaultMark, "app"},
		{"the application's connection elsewhere", remoteAddress + ":8080", DefaultInboundMark, "remote"},
		{"another mark is not the sidecar's", remoteAddress + ":8080", 1, "outbound " + remoteAddress + ":8080"},
		{"the pod's own address", podAddress + ":8080", 0, "app"},
		{"loopback", "127.0.0.1:8080", 0, "app"},
		{"DNS over TCP to any server", "9.9.9.9:53", 0, "dns 9.9.9.9:53"},
		{"DNS over TCP to a resolver of the pod", "127.0.0.53:53", 0, "dns 127.0.0.53:53"},
	} {
		got := ask(tc.address, tc.mark)
		if got != tc.want && got != tc.want+" "+tc.address && got != tc.want+" direct" {
			t.Errorf("%s: %s with mark %#x reached %q, want %q", tc.reason, tc.address, tc.mark, got, tc.want)
		}
	}
	for _, server := range []string{"9.9.9.9:53", "127.0.0.53:53"} {
		// The socket is connected: an answer from another address than the one asked would not be delivered.
		conn, err := dial("udp4", server, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, "who?")
		if got := firstLine(conn); got != "dns who?" {
			t.Errorf("DNS over UDP to %s: answer %q", server, got)
		}
		conn.Close()
	}
}

func TestKernelRedirectsWhatThePodIsSent(t *testing.T) {
	r := network(t)
	listen(t, "app", "0.0.0.0:8080")
	listen(t, "open", "0.0.0.0:9999")
	sidecar(t, Config{ExcludeInbound: []uint16{9999}})
	var app, open string
	r.do(t, func() error {
		app, open = ask(podAddress+":8080", 0), ask(podAddress+":9999", 0)
		return nil
	})
	if app != "inbound "+podAddress+":8080" {
		t.Errorf("port 8080 from outside reached %q, want the sidecar with the original destination", app)
	}
	if !strings.HasPrefix(open, "open ") {
		t.Errorf("the excluded port 9999 from outside reached %q, want the application", open)
	}
	// The sidecar hands the connection to the application over loopback.
	if got := ask(podAddress+":8080", DefaultInboundMark); !strings.HasPrefix(got, "app ") {
		t.Errorf("the sidecar's connection to its own pod reached %q, want the application", got)
	}
}

// ruleCount is what the kernel holds.
func ruleCount(t *testing.T) int {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, chain := range chains {
		rules, err := conn.GetRules(chain.Table, chain)
		if err != nil {
			t.Fatal(err)
		}
		n += len(rules)
	}
	return n
}

func TestKernelReapplyChangesNothing(t *testing.T) {
	network(t)
	plan := sidecar(t, Config{})
	conn, err := dial("tcp4", "240.240.0.10:80", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	first := firstLine(conn)
	want := ruleCount(t)
	for range 3 {
		if err := Apply(plan); err != nil {
			t.Fatal(err)
		}
	}
	if got := ruleCount(t); got != want || want != 8 {
		t.Errorf("%d rules after applying four times, %d after once; want 8", got, want)
	}
	fmt.Fprint(conn, "still there?")
	if got := firstLine(conn); got != "still there?" {
		t.Errorf("the connection that began with %q got %q after the rules were applied again", first, got)
	}
}

func TestKernelApplyReplacesAnotherPlan(t *testing.T) {
	network(t)
	listen(t, "new", "127.0.0.1:16001")
	sidecar(t, Config{ExcludeInbound: []uint16{1, 2, 3}})
	plan, err := New(Config{OutboundPort: 16001})
	if err != nil {
		t.Fatal(err)
	}
	if err := Apply(plan); err != nil {
		t.Fatal(err)
	}
	if got := ask("240.240.0.10:80", 0); got != "new 240.240.0.10:80" {
		t.Errorf("after another plan: %q", got)
	}
	if n := ruleCount(t); n != 8 {
		t.Errorf("%d rules, want the new plan's 8", n)
	}
}

// TestKernelReapplyLeavesNoGap connects all the while: a connection made between two transactions, if rules were
// removed first, would reach the neighbour unencrypted.
func TestKernelReapplyLeavesNoGap(t *testing.T) {
	r := network(t)
	r.do(t, func() error { listen(t, "remote", remoteAddress+":8080"); return nil })
	plan := sidecar(t, Config{})
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := Apply(plan); err != nil {
				done <- err
				return
			}
		}
	}()
	for i := range 300 {
		if got := ask(remoteAddress+":8080", 0); got != "outbound "+remoteAddress+":8080" {
			t.Errorf("connection %d reached %q while the rules were applied again", i, got)
			break
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestKernelRemove(t *testing.T) {
	r := network(t)
	r.do(t, func() error { listen(t, "remote", remoteAddress+":8080"); return nil })
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	other := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "someone-elses"})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	sidecar(t, Config{})
	for range 2 { // the second time there is nothing to remove
		if err := Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if got := ask(remoteAddress+":8080", 0); !strings.HasPrefix(got, "remote ") {
		t.Errorf("after Remove: %q, want the neighbour itself", got)
	}
	tables, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) != 1 || tables[0].Name != other.Name {
		t.Errorf("tables %v after Remove, want %q alone", tables, other.Name)
	}
}

package sandbox

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/internal/hint"
)

func TestAttributes(t *testing.T) {
	all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1000}}
	for _, tc := range []struct {
		why    string
		caller Caller
		user   bool
		uids   []syscall.SysProcIDMap
		groups bool
		caps   int
	}{
		{"root with its rights needs no user namespace", Caller{Admin: true}, false, nil, false, 0},
		{"root without keeps all ids, or files of others lose their owners", Caller{UIDs: all, GIDs: all}, true, all, true, 0},
		{"a user stays itself and hands on what the first process needs", Caller{UID: 1000, GID: 1000}, true,
			[]syscall.SysProcIDMap{{ContainerID: 1000, HostID: 1000, Size: 1}}, false, len(initCapabilities)},
	} {
		a := tc.caller.Attributes(true)
		if got := a.Cloneflags&unix.CLONE_NEWUSER != 0; got != tc.user {
			t.Errorf("%s: user namespace %t", tc.why, got)
		}
		if a.Cloneflags&namespaces != namespaces {
			t.Errorf("%s: clone flags %x lack some of %x", tc.why, a.Cloneflags, namespaces)
		}
		if diff := cmp.Diff(tc.uids, a.UidMappings); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.why, diff)
		}
		if a.GidMappingsEnableSetgroups != tc.groups || len(a.AmbientCaps) != tc.caps {
			t.Errorf("%s: setgroups %t, %d capabilities", tc.why, a.GidMappingsEnableSetgroups, len(a.AmbientCaps))
		}
		if a.Pdeathsig != syscall.SIGKILL || a.Setsid {
			t.Errorf("%s: tied: %+v", tc.why, a)
		}
		if free := tc.caller.Attributes(false); free.Pdeathsig != 0 || !free.Setsid {
			t.Errorf("%s: not tied: %+v", tc.why, free)
		}
	}
}

func TestParseIdentityMap(t *testing.T) {
	got, err := parseIdentityMap("         0          0 4294967295\n")
	if diff := cmp.Diff([]syscall.SysProcIDMap{{Size: 1<<31 - 1}}, got); err != nil || diff != "" {
		t.Errorf("the whole range: %v (-want +got):\n%s", err, diff)
	}
	got, err = parseIdentityMap("0 1000 1\n1 100000 65536\n")
	want := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}, {ContainerID: 1, HostID: 1, Size: 65536}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("inside another: %v (-want +got):\n%s", err, diff)
	}
	if got, err := parseIdentityMap("0 x 1\n"); err == nil {
		t.Errorf("nonsense gives %v", got)
	}
}

func TestParsePidfdInfo(t *testing.T) {
	for _, tc := range []struct {
		why, text string
		want      int
	}{
		{"as Linux prints it", "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t9\nPid:\t28035\nNSpid:\t28035\t9\n", 28035},
		{"a process that has ended", "pos:\t0\nPid:\t-1\n", 0},
		{"not visible there", "Pid:\t0\n", 0},
		{"not a pidfd", "pos:\t0\n", 0},
	} {
		got, err := parsePidfdInfo(tc.text)
		if got != tc.want || (err == nil) != (tc.want != 0) {
			t.Errorf("%s: parsePidfdInfo(%q) = %d, %v; want %d", tc.why, tc.text, got, err, tc.want)
		}
	}
}

// Each row is a system on which the step fails with that error.
func TestExplain(t *testing.T) {
	user := Guards{UID: 1000, MaxUser: 10000, MaxNet: 10000, UnprivilegedClone: -1, AppArmor: -1, Program: "/clone/bin/isthmus"}
	with := func(f func(*Guards)) Guards { g := user; f(&g); return g }
	for _, tc := range []struct {
		why   string
		g     Guards
		step  Step
		errno error
		fix   string
	}{
		{"limit of user namespaces: the kernel says no space left on device", with(func(g *Guards) { g.MaxUser = 0 }), StepClone, syscall.ENOSPC, "sysctl user.max_user_namespaces="},
		{"Debian's switch", with(func(g *Guards) { g.UnprivilegedClone = 0 }), StepClone, syscall.EPERM, "sysctl kernel.unprivileged_userns_clone=1"},
		{"Ubuntu's AppArmor, refused at the id map", with(func(g *Guards) { g.AppArmor = 1 }), StepClone, syscall.EPERM, "kernel.apparmor_restrict_unprivileged_userns=0"},
		{"Ubuntu's AppArmor, refused at the first mount", with(func(g *Guards) { g.AppArmor = 1 }), StepMounts, syscall.EACCES, "profile isthmus /clone/bin/isthmus flags=(unconfined)"},
		{"Docker's seccomp", with(func(g *Guards) { g.Container = true }), StepClone, syscall.EPERM, "seccomp=unconfined"},
		{"root in Docker", Guards{UID: 0, MaxUser: 10000, Container: true, UnprivilegedClone: 0, AppArmor: 1}, StepClone, syscall.EPERM, "--privileged"},
		{"a chroot, or anything else", user, StepClone, syscall.EPERM, "outside any container or chroot, or as root"},
		{"a container that masks /proc", with(func(g *Guards) { g.Container = true }), StepProc, syscall.EPERM, "systempaths=unconfined"},
		{"a hardened service that masks /proc", user, StepProc, syscall.EPERM, "login shell"},
		{"read-only /proc/sys", with(func(g *Guards) { g.Container = true }), StepNetwork, syscall.EROFS, "systempaths=unconfined"},
		{"limit of network namespaces", with(func(g *Guards) { g.MaxNet = 10 }), StepNetwork, syscall.ENOSPC, "limited to 10"},
		{"no veth", user, StepLinks, syscall.EOPNOTSUPP, "modprobe -a bridge veth"},
		{"no redirect", user, StepNAT, syscall.ENOENT, "nft_redir"},
		{"no bridge family under WSL", with(func(g *Guards) { g.WSL = true }), StepBridge, syscall.EOPNOTSUPP, "wsl --update"},
		{"no raw sockets", user, StepCapture, syscall.EPERM, "as root"},
	} {
		// As it arrives from the tree: flattened and made an error again.
		err := tc.g.Explain(FailureOf(&StepError{tc.step, fmt.Errorf("do it: %w", tc.errno)}).Err())
		if !strings.Contains(hint.Of(err), tc.fix) {
			t.Errorf("%s: %v: hint %q, want %q in it", tc.why, err, hint.Of(err), tc.fix)
		}
		if !errors.Is(err, tc.errno) || hint.CodeOf(err) == "" {
			t.Errorf("%s: %v (code %q) lost its cause", tc.why, err, hint.CodeOf(err))
		}
	}
	if err := user.Explain(nil); err != nil {
		t.Errorf("Explain(nil) = %v", err)
	}
	other := errors.New("other")
	if err := user.Explain(other); err != other {
		t.Errorf("an error that is not of a step became %v", err)
	}
}

func TestCheckCapacity(t *testing.T) {
	for _, tc := range []struct {
		limit, need int
		fine        bool
	}{{-1, 1000, true}, {29, 29, true}, {28, 29, false}} {
		if err := (Guards{MaxNet: tc.limit}).CheckCapacity(tc.need); (err == nil) != tc.fine {
			t.Errorf("limit %d, need %d: %v", tc.limit, tc.need, err)
		}
	}
}

func TestResolver(t *testing.T) {
	files := resolver("240.240.0.53", "shop")
	if !strings.Contains(files["/etc/resolv.conf"], "nameserver 240.240.0.53\nsearch shop.svc.cluster.local ") {
		t.Errorf("resolv.conf: %q", files["/etc/resolv.conf"])
	}
	// Anything but files and dns would ask the host over a Unix socket.
	if !strings.Contains(files["/etc/nsswitch.conf"], "\nhosts: files dns\n") {
		t.Errorf("nsswitch.conf: %q", files["/etc/nsswitch.conf"])
	}
}

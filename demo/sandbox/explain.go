package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"isthmus.dev/isthmus/internal/hint"
)

// Guards is what a system says about its own limits. It chooses the words of an
// explanation only; whether something works is found out by doing it.
type Guards struct {
	// UID is the caller's; 0 is root, who needs other words.
	UID int
	// MaxUser and MaxNet are user.max_user_namespaces and max_net_namespaces; -1 if unknown.
	MaxUser, MaxNet int
	// UnprivilegedClone is kernel.unprivileged_userns_clone of Debian's kernels: 0 forbids, -1 if absent.
	UnprivilegedClone int
	// AppArmor is kernel.apparmor_restrict_unprivileged_userns of Ubuntu: 1 forbids, -1 if absent.
	AppArmor int
	// Container is true inside Docker, Podman or the like.
	Container bool
	// WSL is true under the Windows Subsystem for Linux.
	WSL bool
	// Program is the path an AppArmor profile would have to name.
	Program string
}

// ReadGuards looks at the running system.
func ReadGuards() Guards {
	g := Guards{
		UID:               os.Getuid(),
		MaxUser:           readInt("/proc/sys/user/max_user_namespaces"),
		MaxNet:            readInt("/proc/sys/user/max_net_namespaces"),
		UnprivilegedClone: readInt("/proc/sys/kernel/unprivileged_userns_clone"),
		AppArmor:          readInt("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
	}
	g.Program, _ = os.Executable()
	for _, sign := range []string{"/.dockerenv", "/run/.containerenv"} {
		if _, err := os.Stat(sign); err == nil {
			g.Container = true
		}
	}
	version, _ := os.ReadFile("/proc/version")
	g.WSL = strings.Contains(strings.ToLower(string(version)), "microsoft")
	return g
}

func readInt(path string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return n
}

// CheckCapacity compares the namespaces a demo needs with the system's limit.
func (g Guards) CheckCapacity(need int) error {
	if g.MaxNet < 0 || need <= g.MaxNet {
		return nil
	}
	err := &StepError{StepCapacity, fmt.Errorf("the demo needs %d network namespaces, user.max_net_namespaces allows %d", need, g.MaxNet)}
	return hint.Wrapf(hint.Code(err, "namespaces_forbidden"),
		"as root: sysctl user.max_net_namespaces=%d, or take fewer --clusters", max(1000, 2*need))
}

// Explain adds to a failed step why this system refuses it and what to change.
func (g Guards) Explain(err error) error {
	var s *StepError
	if err == nil || !errors.As(err, &s) || hint.Of(err) != "" {
		return err
	}
	code, fix := "namespaces_forbidden", g.general()
	switch s.Step {
	case StepClone, StepMounts:
		fix = g.cloneFix(err)
	case StepProc:
		fix = g.procFix()
	case StepNetwork, StepLinks, StepNAT, StepBridge:
		fix = g.networkFix(s.Step, err)
		if isMissing(err) {
			code = "kernel_lacks_module"
		}
	}
	return hint.Wrap(hint.Code(fmt.Errorf("this system does not let the demo run: %w", err), code), fix)
}

const containerFix = "start the container with --privileged, or with --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"

// cloneFix: the kernel's own error texts mislead here ("no space left on device").
func (g Guards) cloneFix(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC) || g.MaxUser == 0:
		return "user namespaces are limited to " + strconv.Itoa(g.MaxUser) + "; as root: sysctl user.max_user_namespaces=10000"
	case g.UnprivilegedClone == 0 && g.UID != 0:
		return "user namespaces are for root only here; as root: sysctl kernel.unprivileged_userns_clone=1, or run the demo as root"
	case g.AppArmor == 1 && g.UID != 0:
		return fmt.Sprintf("AppArmor restricts user namespaces here; as root, either sysctl kernel.apparmor_restrict_unprivileged_userns=0, "+
			"or load a profile with apparmor_parser -r: \"abi <abi/4.0>, profile isthmus %s flags=(unconfined) { userns, }\", or run the demo as root", g.Program)
	case g.Container:
		return "the container forbids namespaces: " + containerFix
	}
	return g.general()
}

func (g Guards) procFix() string {
	if g.Container {
		return "the container hides parts of /proc, so no new one may be mounted: " + containerFix
	}
	return "parts of /proc are covered or read-only, as in a container or a hardened service: run where they are not, for example in a login shell"
}

func (g Guards) networkFix(s Step, err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Sprintf("network namespaces are limited to %d; as root: sysctl user.max_net_namespaces=1000", g.MaxNet)
	case errors.Is(err, syscall.EROFS):
		return g.procFix()
	case isMissing(err):
		modules := map[Step]string{
			StepLinks:  "bridge veth nf_tables nft_masq",
			StepNAT:    "nf_tables nft_chain_nat nft_redir nft_masq",
			StepBridge: "nf_tables nf_tables_bridge nft_meta_bridge",
		}[s]
		fix := "the kernel lacks a module; as root: modprobe -a " + modules
		if g.WSL {
			fix += "; under WSL 2 run wsl --update first, and take the stock kernel"
		}
		return fix
	}
	return g.general()
}

// isMissing tells a kernel that cannot from one that may not.
func isMissing(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EOPNOTSUPP) ||
		errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EPROTONOSUPPORT)
}

func (g Guards) general() string {
	if g.UID == 0 {
		return "root lacks the right to make namespaces here (a container, or a reduced service): " + containerFix
	}
	return "run the demo outside any container or chroot, or as root (sudo)"
}

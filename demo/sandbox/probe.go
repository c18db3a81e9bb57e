package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/demo/netns"
)

// Step is one thing the demo needs of the kernel.
type Step string

// The steps in the order in which they are tried.
const (
	StepClone    Step = "namespaces"
	StepMounts   Step = "mounts"
	StepProc     Step = "proc"
	StepNetwork  Step = "network namespace"
	StepLinks    Step = "bridge and veth"
	StepNAT      Step = "nftables nat"
	StepBridge   Step = "nftables bridge"
	StepCapture  Step = "packet socket"
	StepCapacity Step = "number of namespaces"
)

// StepError says which step failed.
type StepError struct {
	Step Step
	Err  error
}

func (e *StepError) Error() string { return fmt.Sprintf("%s: %v", e.Step, e.Err) }
func (e *StepError) Unwrap() error { return e.Err }

func step(s Step, err error) error {
	if err == nil {
		return nil
	}
	return &StepError{Step: s, Err: err}
}

// Failure is a StepError as it travels from the tree to its parent.
type Failure struct {
	Step    Step   `json:"step"`
	Errno   int    `json:"errno"`
	Message string `json:"message"`
}

// FailureOf flattens an error for the way out.
func FailureOf(err error) Failure {
	f := Failure{Message: err.Error()}
	var s *StepError
	if errors.As(err, &s) {
		f.Step, f.Message = s.Step, s.Err.Error()
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		f.Errno = int(errno)
	}
	return f
}

// Err is the failure as an error again.
func (f Failure) Err() error {
	return &StepError{Step: f.Step, Err: &remoteError{message: f.Message, errno: syscall.Errno(f.Errno)}}
}

// remoteError keeps the text and the number of an error of another process.
type remoteError struct {
	message string
	errno   syscall.Errno
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// Probe does once everything the demo will do to the kernel: one link, one node,
// one pod, one cut. It runs inside the tree, after Setup, and leaves nothing.
func Probe() error {
	own, err := netns.Current()
	if err != nil {
		return step(StepNetwork, err)
	}
	defer own.Close()
	link, err := netns.NewLink(own, netip.MustParsePrefix("192.0.2.1/24"))
	if err != nil {
		return step(StepLinks, err)
	}
	trial, err := netns.New(map[string]string{"ipv4/ip_forward": "1"})
	if err != nil {
		return step(StepNetwork, err)
	}
	defer trial.Close()
	if err := natTrial(trial); err != nil {
		return step(StepNAT, fmt.Errorf("redirect and masquerade: %w", err))
	}
	node, err := link.AddNode("probe", netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("198.51.100.1/24"))
	if err != nil {
		return step(StepLinks, err)
	}
	defer node.Close()
	pod, err := node.AddPod(netip.MustParseAddr("198.51.100.2"))
	if err != nil {
		return step(StepLinks, err)
	}
	defer pod.Close()
	if err := errors.Join(link.Cut("probe"), link.Mend("probe")); err != nil {
		return step(StepBridge, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return step(StepCapture, err)
	}
	return step(StepCapture, unix.Close(fd))
}

// natTrial writes one chain with the two verdicts that need modules of their own.
func natTrial(ns *netns.Namespace) error {
	return ns.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "isthmus_probe", Family: nftables.TableFamilyIPv4})
		output := c.AddChain(&nftables.Chain{
			Name: "output", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: output, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(15001)},
			&expr.Redir{RegisterProtoMin: 1},
		}})
		postrouting := c.AddChain(&nftables.Chain{
			Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: postrouting, Exprs: []expr.Any{&expr.Masq{}}})
		return c.Flush()
	})
}

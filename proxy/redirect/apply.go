package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/internal/hint"
)

// Offsets in bytes: in the TCP and UDP headers, which agree (RFC 9293, section 3.1; RFC 768), and in that of IPv4
// (RFC 791, section 3.1).
const (
	destPortOffset    = 2
	destPortLength    = 2
	destAddressOffset = 16
	destAddressLength = 4
)

// Apply makes the plan's table what the plan says, in the network namespace of the calling thread, whatever it held
// before. Connections that are established keep their path. It needs CAP_NET_ADMIN in that namespace.
func Apply(plan Plan) error {
	conn, err := nftables.New()
	if err != nil {
		return explain(fmt.Errorf("open nftables: %w", err))
	}
	kernel := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: plan.Table}
	// Adding what exists is no error and deleting what does not is one, so: add, delete, add. The transaction is
	// committed as a whole, and the rules before it apply until then.
	conn.AddTable(kernel)
	conn.DelTable(kernel)
	conn.AddTable(kernel)
	for _, chain := range plan.Chains {
		hook, priority := nftables.ChainHookOutput, nftables.ChainPriority(chain.Priority)
		if chain.Hook == Prerouting {
			hook = nftables.ChainHookPrerouting
		}
		added := conn.AddChain(&nftables.Chain{
			Table: kernel, Name: chain.Name, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: &priority,
		})
		for _, rule := range chain.Rules {
			conn.AddRule(&nftables.Rule{Table: kernel, Chain: added, Exprs: expressions(rule)})
		}
	}
	if err := conn.Flush(); err != nil {
		return explain(fmt.Errorf("apply nftables table ip %s: %w", plan.Table, err))
	}
	return nil
}

// Remove takes the sidecar's table out of the network namespace of the calling thread. It is no error if there is
// none.
func Remove() error {
	conn, err := nftables.New()
	if err != nil {
		return explain(fmt.Errorf("open nftables: %w", err))
	}
	kernel := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: table}
	conn.AddTable(kernel)
	conn.DelTable(kernel)
	if err := conn.Flush(); err != nil {
		return explain(fmt.Errorf("remove nftables table ip %s: %w", table, err))
	}
	return nil
}

// explain adds what to do about the errors that a kernel or a container gives.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return hint.Wrap(err, "the proxy needs CAP_NET_ADMIN in the network namespace of its workload")
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return hint.Wrap(err, "the kernel lacks nftables modules; as root: modprobe -a nf_tables nft_chain_nat nft_redir")
	}
	return err
}

// expressions is the rule as the kernel's virtual machine runs it: each pair loads a value into a register and ends
// the rule unless it is equal.
func expressions(rule Rule) []expr.Any {
	const register = 1
	var exprs []expr.Any
	equal := func(load expr.Any, value []byte) {
		exprs = append(exprs, load, &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: value})
	}
	if rule.Mark != 0 {
		equal(&expr.Meta{Key: expr.MetaKeyMARK, Register: register}, binaryutil.NativeEndian.PutUint32(rule.Mark))
	}
	if rule.InInterface != "" {
		equal(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register}, interfaceName(rule.InInterface))
	}
	if rule.OutInterface != "" {
		equal(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register}, interfaceName(rule.OutInterface))
	}
	if rule.NotTo.IsValid() {
		exprs = append(exprs, notTo(rule.NotTo, register)...)
	}
	switch rule.Protocol {
	case TCP:
		equal(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, []byte{unix.IPPROTO_TCP})
	case UDP:
		equal(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, []byte{unix.IPPROTO_UDP})
	}
	if rule.DestPort != 0 {
		equal(&expr.Payload{
			DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: destPortOffset, Len: destPortLength,
		}, binaryutil.BigEndian.PutUint16(rule.DestPort))
	}
	if rule.RedirectTo == 0 {
		return append(exprs, &expr.Verdict{Kind: expr.VerdictReturn})
	}
	return append(exprs,
		&expr.Immediate{Register: register, Data: binaryutil.BigEndian.PutUint16(rule.RedirectTo)},
		&expr.Redir{RegisterProtoMin: register})
}

// notTo ends the rule for packets into a network.
func notTo(network netip.Prefix, register uint32) []expr.Any {
	base := network.Masked().Addr().As4()
	return []expr.Any{
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: destAddressOffset, Len: destAddressLength},
		&expr.Bitwise{
			SourceRegister: register, DestRegister: register, Len: destAddressLength,
			Mask: net.CIDRMask(network.Bits(), 8*destAddressLength), Xor: make([]byte, destAddressLength),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: base[:]},
	}
}

// interfaceName is the name as the kernel compares it: all of IFNAMSIZ bytes.
func interfaceName(name string) []byte {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}

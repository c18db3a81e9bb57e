// Package redirect sends a pod's traffic through its sidecar by nftables, with nothing of the application changed.
//
// New decides: it is pure and gives the rules as values, which String shows in the syntax of nft(8). Apply and Remove
// act on the network namespace of the calling process, each in one transaction: there is no moment at which a packet
// meets half of the rules. The rules stay when the sidecar dies, however it dies: its pod is then cut off rather than
// open, and the next sidecar applies the same rules over them.
//
// Only IPv4 is redirected. Where a pod has IPv6, whoever makes the pod must disable it.
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Ports of the sidecar and its marks, where a Config does not say otherwise.
const (
	DefaultMark         = 0x1337
	DefaultInboundMark  = 0x1338
	DefaultOutboundPort = 15001
	DefaultInboundPort  = 15006
	DefaultDNSPort      = 15053
	DefaultInterface    = "eth0"
)

// dnsPort is where resolvers send their questions.
const dnsPort = 53

// Config says where traffic is sent. The zero value is what every sidecar uses.
type Config struct {
	// Mark is what the sidecar's own sockets carry (SO_MARK); their packets are left alone, but for those to the pod
	// itself: a sidecar that picks its own pod to answer calls it as it calls any other, through InboundPort. 0:
	// DefaultMark.
	Mark uint32
	// InboundMark is what the sidecar's sockets to the application carry; their packets are left alone. 0:
	// DefaultInboundMark.
	InboundMark uint32
	// OutboundPort takes the TCP connections that the pod makes, on 127.0.0.1. 0: DefaultOutboundPort.
	OutboundPort uint16
	// InboundPort takes the TCP connections made to the pod; what listens there must do so on every address,
	// because the kernel redirects to that of the interface. 0: DefaultInboundPort.
	InboundPort uint16
	// DNSPort takes questions to port 53 of any address, on 127.0.0.1. 0: DefaultDNSPort.
	DNSPort uint16
	// Interface is where the pod's traffic arrives. "": DefaultInterface.
	Interface string
	// ExcludeInbound are ports that are reached directly, without the sidecar.
	ExcludeInbound []uint16
}

// Hook is where in the packet's path a chain is attached (netfilter hooks of the ip family).
type Hook string

// The hooks in use.
const (
	Output     Hook = "output"     // packets made in the pod
	Prerouting Hook = "prerouting" // packets that arrive
)

// Protocol is the transport that a rule is about.
type Protocol string

// The transports.
const (
	AnyProtocol Protocol = ""
	TCP         Protocol = "tcp"
	UDP         Protocol = "udp"
)

// Rule matches packets by all of its fields that are not zero. RedirectTo is what is done to them: 0 leaves them
// alone, and ends the chain.
type Rule struct {
	Mark         uint32
	InInterface  string
	OutInterface string
	// NotTo is a network of IPv4 that the destination is not in.
	NotTo      netip.Prefix
	Protocol   Protocol
	DestPort   uint16 // only together with Protocol
	RedirectTo uint16
}

// Chain is the rules at one hook, the first that matches decides. All chains are of type nat: the rules see the first
// packet of a connection, the others follow it.
type Chain struct {
	Name     string
	Hook     Hook
	Priority int32
	Rules    []Rule
}

// Plan is a table of the family ip.
type Plan struct {
	Table  string
	Chains []Chain
}

// table is the one table that belongs to the sidecar; Apply and Remove touch no other.
const table = "isthmus"

// The priority "dstnat" of nft(8) in both hooks.
const (
	outputPriority     = -100
	preroutingPriority = -100
)

// loopback is what a program means that calls its own machine (RFC 1122, section 3.2.1.3).
var loopback = netip.MustParsePrefix("127.0.0.0/8")

// New is the plan of a config. Its order matters: what the sidecar hands to the application first, or it would meet
// itself; then what it sends to the pod's own address, where it is its own peer; then all its other packets; DNS before the loopback interface, or a resolver at 127.0.0.53 would not be reached; loopback before the rest, so that
// processes of one pod talk to each other directly.
func New(config Config) (Plan, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return Plan{}, fmt.Errorf("redirect of interface %q: %w", config.Interface, err)
	}
	excluded := slices.Compact(slices.Sorted(slices.Values(config.ExcludeInbound)))
	inbound := make([]Rule, 0, len(excluded)+1)
	for _, port := range excluded {
		inbound = append(inbound, Rule{InInterface: config.Interface, Protocol: TCP, DestPort: port})
	}
	inbound = append(inbound, Rule{InInterface: config.Interface, Protocol: TCP, RedirectTo: config.InboundPort})
	return Plan{Table: table, Chains: []Chain{
		{Name: "output", Hook: Output, Priority: outputPriority, Rules: []Rule{
			{Mark: config.InboundMark},
			{Mark: config.Mark, OutInterface: "lo", NotTo: loopback, Protocol: TCP, RedirectTo: config.InboundPort},
			{Mark: config.Mark},
			{Protocol: UDP, DestPort: dnsPort, RedirectTo: config.DNSPort},
			{Protocol: TCP, DestPort: dnsPort, RedirectTo: config.DNSPort},
			{OutInterface: "lo"},
			{Protocol: TCP, RedirectTo: config.OutboundPort},
		}},
		{Name: "prerouting", Hook: Prerouting, Priority: preroutingPriority, Rules: inbound},
	}}, nil
}

// withDefaults replaces zero values.
func (c Config) withDefaults() Config {
	if c.Mark == 0 {
		c.Mark = DefaultMark
	}
	if c.InboundMark == 0 {
		c.InboundMark = DefaultInboundMark
	}
	if c.OutboundPort == 0 {
		c.OutboundPort = DefaultOutboundPort
	}
	if c.InboundPort == 0 {
		c.InboundPort = DefaultInboundPort
	}
	if c.DNSPort == 0 {
		c.DNSPort = DefaultDNSPort
	}
	if c.Interface == "" {
		c.Interface = DefaultInterface
	}
	return c
}

// maxInterface is the longest name of an interface (IFNAMSIZ with its final zero), in bytes.
const maxInterface = 15

func (c Config) validate() error {
	var errs []error
	if len(c.Interface) > maxInterface || strings.ContainsAny(c.Interface, "/ \t\n\"\x00") {
		errs = append(errs, fmt.Errorf("interface %q: want a name of at most %d bytes without spaces and slashes", c.Interface, maxInterface))
	}
	if c.Interface == "lo" {
		errs = append(errs, errors.New(`interface "lo": processes of one pod talk to each other directly`))
	}
	if slices.Contains(c.ExcludeInbound, 0) {
		errs = append(errs, errors.New("excluded inbound port 0 does not exist"))
	}
	if c.OutboundPort == c.InboundPort || c.OutboundPort == c.DNSPort || c.InboundPort == c.DNSPort {
		errs = append(errs, fmt.Errorf("outbound, inbound and DNS ports %d, %d and %d must differ", c.OutboundPort, c.InboundPort, c.DNSPort))
	}
	if c.Mark == c.InboundMark {
		errs = append(errs, fmt.Errorf("mark %#x: the sidecar's calls and those to the application must differ", c.Mark))
	}
	return errors.Join(errs...)
}

// String is the plan as `nft list table ip isthmus` shows it.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table ip %s {\n", p.Table)
	for i, chain := range p.Chains {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype nat hook %s priority %d; policy accept;\n", chain.Name, chain.Hook, chain.Priority)
		for _, rule := range chain.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", rule)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// String is the rule in the syntax of nft(8).
func (r Rule) String() string {
	var parts []string
	if r.Mark != 0 {
		parts = append(parts, fmt.Sprintf("meta mark 0x%08x", r.Mark))
	}
	if r.InInterface != "" {
		parts = append(parts, fmt.Sprintf("iifname %q", r.InInterface))
	}
	if r.OutInterface != "" {
		parts = append(parts, fmt.Sprintf("oifname %q", r.OutInterface))
	}
	if r.NotTo.IsValid() {
		parts = append(parts, "ip daddr != "+r.NotTo.String())
	}
	switch {
	case r.DestPort != 0:
		parts = append(parts, fmt.Sprintf("%s dport %d", r.Protocol, r.DestPort))
	case r.Protocol != AnyProtocol:
		parts = append(parts, "meta l4proto "+string(r.Protocol))
	}
	if r.RedirectTo != 0 {
		return strings.Join(append(parts, fmt.Sprintf("redirect to :%d", r.RedirectTo)), " ")
	}
	return strings.Join(append(parts, "return"), " ")
}

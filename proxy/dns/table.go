package dns

import (
	"maps"
	"net/netip"
	"strings"

	wire "github.com/miekg/dns"
)

// ttl is how long an answer may be kept, in seconds, positive or negative. A virtual IP does not change while its
// service is known, so this bounds only how long a service that appears or goes is not noticed.
const ttl = 30

// maxUDP is the largest UDP answer sent and announced, in bytes: larger ones are fragmented on common paths
// (DNS Flag Day 2020).
const maxUDP = 1232

// The zones that the mesh owns: no name below them is asked of anyone else.
const (
	clusterZone    = "cluster.local."
	clusterSetZone = "clusterset.local."
)

// table is what one namespace resolves; it is immutable.
type table struct {
	namespace string
	names     map[string]netip.Addr // lower-case, with the final dot
	// parents are the names above names, which exist although they have no address (RFC 8020, section 2).
	parents map[string]bool
}

// newTable copies addresses. Names that cannot be asked for and addresses that are none are left out and returned.
func newTable(namespace string, addresses map[string]netip.Addr) (*table, []string) {
	t := &table{namespace: namespace, names: make(map[string]netip.Addr, len(addresses)), parents: map[string]bool{}}
	var unusable []string
	for name, address := range addresses {
		if _, ok := wire.IsDomainName(name); !ok || name == "" || name == "." || !address.IsValid() {
			unusable = append(unusable, name)
			continue
		}
		name = wire.CanonicalName(name)
		t.names[name] = address.Unmap()
		for at, end := wire.NextLabel(name, 0); !end; at, end = wire.NextLabel(name, at) {
			t.parents[name[at:]] = true
		}
	}
	return t, unusable
}

// verdict is what is to be done with a query.
type verdict int

const (
	answered  verdict = iota // the reply is complete
	ignored                  // no reply: it was no query, and whoever sent it may not be who it says
	elsewhere                // the reply is NXDOMAIN, for where there is nobody else to ask
)

// reply answers one query from the table; t is nil as long as there is none.
func (t *table) reply(query *wire.Msg) (*wire.Msg, verdict) {
	if query.Response {
		return nil, ignored
	}
	reply := new(wire.Msg)
	reply.SetReply(query) // copies the question, and RD
	reply.Compress = true
	// Clients take an empty answer that is neither authoritative nor recursive for a server that knows nothing.
	reply.RecursionAvailable = true
	if option := query.IsEdns0(); option != nil {
		reply.SetEdns0(maxUDP, option.Do())
		if option.Version() != 0 {
			return withCode(reply, wire.RcodeBadVers), answered
		}
	}
	switch {
	case query.Opcode != wire.OpcodeQuery:
		return withCode(reply, wire.RcodeNotImplemented), answered
	case len(query.Question) != 1: // RFC 9619
		return withCode(reply, wire.RcodeFormatError), answered
	case query.Question[0].Qclass != wire.ClassINET:
		return withCode(reply, wire.RcodeRefused), answered
	case t == nil:
		return withCode(reply, wire.RcodeServerFailure), answered
	}
	question := query.Question[0]
	name := wire.CanonicalName(question.Name)
	if address, ok := t.lookup(name); ok {
		reply.Authoritative = true
		if records := record(question, address); records != nil {
			reply.Answer = records
		} else {
			reply.Ns = authority(name)
		}
		return reply, answered
	}
	if zone(name) == "" && !t.parents[name] {
		return withCode(reply, wire.RcodeNameError), elsewhere
	}
	reply.Authoritative = true
	reply.Ns = authority(name)
	if !t.parents[name] && name != zone(name) {
		reply.Rcode = wire.RcodeNameError
	}
	return reply, answered
}

// withCode sets the code of a reply; BADVERS goes partly into the OPT record when it is packed.
func withCode(reply *wire.Msg, code int) *wire.Msg {
	reply.Rcode = code
	return reply
}

// lookup finds a full name, or a short one relative to the namespace: ratings, ratings.shop, ratings.shop.svc.
func (t *table) lookup(name string) (netip.Addr, bool) {
	if address, ok := t.names[name]; ok {
		return address, true
	}
	full := ""
	switch labels := wire.CountLabel(name); {
	case labels == 1:
		full = name + t.namespace + ".svc." + clusterZone
	case labels == 2:
		full = name + "svc." + clusterZone
	case labels == 3 && strings.HasSuffix(name, ".svc."):
		full = name + clusterZone
	}
	address, ok := t.names[full]
	return address, ok
}

// record is the answer to a question about a name with that address; nil if the name has none of that type.
func record(question wire.Question, address netip.Addr) []wire.RR {
	header := wire.RR_Header{Name: question.Name, Class: wire.ClassINET, Ttl: ttl}
	anything := question.Qtype == wire.TypeANY // one record is enough (RFC 8482)
	switch {
	case address.Is4() && (anything || question.Qtype == wire.TypeA):
		header.Rrtype = wire.TypeA
		return []wire.RR{&wire.A{Hdr: header, A: address.AsSlice()}}
	case address.Is6() && (anything || question.Qtype == wire.TypeAAAA):
		header.Rrtype = wire.TypeAAAA
		return []wire.RR{&wire.AAAA{Hdr: header, AAAA: address.AsSlice()}}
	}
	return nil
}

// zone is the mesh's zone that a canonical name is in, or "".
func zone(name string) string {
	for _, z := range []string{clusterZone, clusterSetZone} {
		if wire.IsSubDomain(z, name) {
			return z
		}
	}
	return ""
}

// authority is the record that says how long an empty answer may be kept (RFC 2308, section 3); a short name is in no
// zone of ours and gets none.
func authority(name string) []wire.RR {
	z := zone(name)
	if z == "" {
		return nil
	}
	return []wire.RR{&wire.SOA{
		Hdr: wire.RR_Header{Name: z, Rrtype: wire.TypeSOA, Class: wire.ClassINET, Ttl: ttl},
		Ns:  "ns.dns." + z, Mbox: "hostmaster." + z,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}}
}

// fit makes a reply small enough for the query's transport, and says so in it (RFC 6891, section 6.2.5).
func fit(reply, query *wire.Msg, udp bool) {
	size := wire.MaxMsgSize
	if udp {
		size = wire.MinMsgSize
		if option := query.IsEdns0(); option != nil {
			size = min(max(int(option.UDPSize()), wire.MinMsgSize), maxUDP)
		}
	}
	reply.Truncate(size)
}

// addresses copies the table for whoever wants to see it.
func (t *table) addresses() map[string]netip.Addr {
	if t == nil {
		return nil
	}
	return maps.Clone(t.names)
}

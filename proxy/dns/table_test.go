package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	wire "github.com/miekg/dns"
)

// addresses are what the pod of these tests is told.
func addresses() map[string]netip.Addr {
	return map[string]netip.Addr{
		"ratings.shop.svc.cluster.local":     netip.MustParseAddr("240.240.0.1"),
		"ratings.shop.svc.clusterset.local.": netip.MustParseAddr("240.240.0.2"),
		"Billing.Pay.svc.cluster.local":      netip.MustParseAddr("240.240.0.3"),
		"six.shop.svc.cluster.local":         netip.MustParseAddr("fd00::1"),
		"api.example.com":                    netip.MustParseAddr("::ffff:240.240.0.4"),
	}
}

func question(name string, qtype uint16) *wire.Msg {
	query := new(wire.Msg)
	query.SetQuestion(wire.Fqdn(name), qtype)
	return query
}

// summary is a reply in one line: code, answers, and which flags and records came with it.
func summary(reply *wire.Msg) string {
	parts := []string{wire.RcodeToString[reply.Rcode]}
	for _, rr := range reply.Answer {
		switch rr := rr.(type) {
		case *wire.A:
			parts = append(parts, rr.A.String())
		case *wire.AAAA:
			parts = append(parts, rr.AAAA.String())
		}
	}
	if reply.Authoritative {
		parts = append(parts, "aa")
	}
	for _, rr := range reply.Ns {
		parts = append(parts, "soa="+rr.Header().Name)
	}
	return strings.Join(parts, " ")
}

func TestReply(t *testing.T) {
	table, unusable := newTable("shop", addresses())
	if len(unusable) > 0 {
		t.Fatalf("unusable: %q", unusable)
	}
	for _, tc := range []struct {
		reason, name string
		qtype        uint16
		want         string
		verdict      verdict
	}{
		{"a full name", "ratings.shop.svc.cluster.local", wire.TypeA, "NOERROR 240.240.0.1 aa", answered},
		{"an imported one", "ratings.shop.svc.clusterset.local", wire.TypeA, "NOERROR 240.240.0.2 aa", answered},
		{"in any case, on both sides", "BILLING.pay.SVC.cluster.local", wire.TypeA, "NOERROR 240.240.0.3 aa", answered},
		{"short, of the own namespace", "ratings", wire.TypeA, "NOERROR 240.240.0.1 aa", answered},
		{"short, of another namespace", "billing.pay", wire.TypeA, "NOERROR 240.240.0.3 aa", answered},
		{"up to svc", "billing.pay.svc", wire.TypeA, "NOERROR 240.240.0.3 aa", answered},
		{"short names are not of other namespaces", "billing", wire.TypeA, "NXDOMAIN", elsewhere},
		{"a name outside the mesh's zones that is in the table", "api.example.com", wire.TypeA, "NOERROR 240.240.0.4 aa", answered},
		{"no IPv6 address: empty, the name exists", "ratings.shop.svc.cluster.local", wire.TypeAAAA, "NOERROR aa soa=cluster.local.", answered},
		{"the same of a short name, which is in no zone", "ratings", wire.TypeAAAA, "NOERROR aa", answered},
		{"an IPv6 address", "six", wire.TypeAAAA, "NOERROR fd00::1 aa", answered},
		{"and no IPv4 address", "six", wire.TypeA, "NOERROR aa", answered},
		{"other types are empty", "ratings.shop.svc.clusterset.local", wire.TypeHTTPS, "NOERROR aa soa=clusterset.local.", answered},
		{"ANY gets one record", "ratings", wire.TypeANY, "NOERROR 240.240.0.1 aa", answered},
		{"not exported: nobody else is asked", "payroll.shop.svc.clusterset.local", wire.TypeA, "NXDOMAIN aa soa=clusterset.local.", answered},
		{"not in the cluster", "nosuch.shop.svc.cluster.local", wire.TypeA, "NXDOMAIN aa soa=cluster.local.", answered},
		{"a name above others exists", "shop.svc.cluster.local", wire.TypeA, "NOERROR aa soa=cluster.local.", answered},
		{"the zone exists", "clusterset.local", wire.TypeNS, "NOERROR aa soa=clusterset.local.", answered},
		{"below a service there is nothing", "a.ratings.shop.svc.cluster.local", wire.TypeA, "NXDOMAIN aa soa=cluster.local.", answered},
		{"another zone that ends alike", "notcluster.local", wire.TypeA, "NXDOMAIN", elsewhere},
		{"a stranger's name", "www.example.org", wire.TypeA, "NXDOMAIN", elsewhere},
		{"a dot inside a label is no separator", `ratings\.shop`, wire.TypeA, "NXDOMAIN", elsewhere},
		{"the root", ".", wire.TypeNS, "NXDOMAIN", elsewhere},
	} {
		query := question(tc.name, tc.qtype)
		reply, got := table.reply(query)
		if summary(reply) != tc.want || got != tc.verdict {
			t.Errorf("%s: %s %s = %q, %d; want %q, %d", tc.reason, tc.name, wire.TypeToString[tc.qtype], summary(reply), got, tc.want, tc.verdict)
		}
		if reply.Id != query.Id || !reply.Response || !reply.RecursionAvailable || !reply.RecursionDesired {
			t.Errorf("%s: header %+v", tc.reason, reply.MsgHdr)
		}
		for _, rr := range append(reply.Answer, reply.Ns...) {
			if rr.Header().Ttl != 30 {
				t.Errorf("%s: TTL %d, want 30", tc.reason, rr.Header().Ttl)
			}
		}
	}
}

func TestReplyToWhatIsNoPlainQuestion(t *testing.T) {
	table, _ := newTable("shop", addresses())
	for _, tc := range []struct {
		reason string
		change func(*wire.Msg)
		code   int
		what   verdict
	}{
		{"a response is not answered, or two servers talk forever", func(m *wire.Msg) { m.Response = true }, 0, ignored},
		{"an update", func(m *wire.Msg) { m.Opcode = wire.OpcodeUpdate }, wire.RcodeNotImplemented, answered},
		{"no question", func(m *wire.Msg) { m.Question = nil }, wire.RcodeFormatError, answered},
		{"two questions", func(m *wire.Msg) { m.Question = append(m.Question, m.Question[0]) }, wire.RcodeFormatError, answered},
		{"another class", func(m *wire.Msg) { m.Question[0].Qclass = wire.ClassCHAOS }, wire.RcodeRefused, answered},
		{"a later EDNS", func(m *wire.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(1) }, wire.RcodeBadVers, answered},
	} {
		query := question("ratings", wire.TypeA)
		tc.change(query)
		reply, what := table.reply(query)
		if what != tc.what || what == answered && (reply.Rcode != tc.code || len(reply.Answer) > 0) {
			t.Errorf("%s: %v, %d; want code %s, %d", tc.reason, reply, what, wire.RcodeToString[tc.code], tc.what)
		}
		if reply != nil {
			if _, err := reply.Pack(); err != nil {
				t.Errorf("%s: %v", tc.reason, err)
			}
		}
	}
}

func TestNothingIsAnsweredWithoutATable(t *testing.T) {
	var none *table
	for _, name := range []string{"ratings", "ratings.shop.svc.cluster.local", "www.example.org"} {
		if reply, what := none.reply(question(name, wire.TypeA)); reply.Rcode != wire.RcodeServerFailure || what != answered {
			t.Errorf("%s before a table was set: %s, %d; want SERVFAIL and nobody asked", name, summary(reply), what)
		}
	}
	empty, _ := newTable("shop", nil)
	if reply, _ := empty.reply(question("ratings.shop.svc.cluster.local", wire.TypeA)); reply.Rcode != wire.RcodeNameError {
		t.Errorf("an empty table: %s, want NXDOMAIN", summary(reply))
	}
}

func TestTableLeavesOutWhatCannotBeAsked(t *testing.T) {
	table, unusable := newTable("shop", map[string]netip.Addr{
		"": netip.MustParseAddr("1.2.3.4"), "a..b": netip.MustParseAddr("1.2.3.4"), "no.address": {},
		strings.Repeat("a", 64) + ".b": netip.MustParseAddr("1.2.3.4"), "good": netip.MustParseAddr("1.2.3.4"),
	})
	if len(unusable) != 4 || len(table.names) != 1 {
		t.Errorf("left out %q, kept %v", unusable, table.names)
	}
}

func TestFit(t *testing.T) {
	for _, tc := range []struct {
		reason    string
		edns      uint16 // 0: none
		udp       bool
		most      int
		truncated bool
	}{
		{"UDP without EDNS", 0, true, 512, true},
		{"a size below the least counts as that", 100, true, 512, true},
		{"what the client can take", 1000, true, 1000, true},
		{"never more than what passes unfragmented", 65535, true, 1232, true},
		{"all of it over TCP", 0, false, 65535, false},
	} {
		query := question("big.example.org", wire.TypeA)
		if tc.edns > 0 {
			query.SetEdns0(tc.edns, false)
		}
		reply := new(wire.Msg)
		reply.SetReply(query)
		for i := range 200 {
			reply.Answer = append(reply.Answer, &wire.A{
				Hdr: wire.RR_Header{Name: "big.example.org.", Rrtype: wire.TypeA, Class: wire.ClassINET},
				A:   netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).AsSlice(),
			})
		}
		bytes := pack(reply, query, tc.udp)
		if len(bytes) == 0 || len(bytes) > tc.most || reply.Truncated != tc.truncated {
			t.Errorf("%s: %d bytes, truncated %v; want at most %d, %v", tc.reason, len(bytes), reply.Truncated, tc.most, tc.truncated)
		}
	}
}

// FuzzReply feeds packets to all that runs before an answer is sent.
func FuzzReply(f *testing.F) {
	for _, name := range []string{"ratings", "ratings.shop.svc.cluster.local", "x.clusterset.local", "www.example.org", "."} {
		query := question(name, wire.TypeA)
		query.SetEdns0(4096, true)
		packet, err := query.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet)
	}
	f.Add([]byte{})
	f.Add(append([]byte{0, 1, 1, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0}, make([]byte, wire.MaxMsgSize-12)...))
	full, _ := newTable("shop", addresses())
	f.Fuzz(func(t *testing.T, packet []byte) {
		query := new(wire.Msg)
		if query.Unpack(packet) != nil {
			return
		}
		for _, table := range []*table{nil, full} {
			reply, what := table.reply(query)
			if what == ignored {
				if !query.Response {
					t.Fatalf("ignored a query: %s", query)
				}
				continue
			}
			bytes := pack(reply, query, true)
			if len(bytes) > maxUDP {
				t.Fatalf("answer of %d bytes to %s", len(bytes), query)
			}
			if bytes == nil {
				continue // a question that cannot be repeated in an answer gets none
			}
			back := new(wire.Msg)
			if err := back.Unpack(bytes); err != nil || !back.Response || back.Id != query.Id {
				t.Fatalf("answer %s to %s: %v", fmt.Sprint(back), query, err)
			}
			if table == nil && len(back.Answer) > 0 {
				t.Fatalf("answered %s without a table", query)
			}
		}
	})
}

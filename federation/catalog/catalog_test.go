package catalog

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/federation/internal/testca"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

const west mesh.ClusterName = "west"

// world is what the tests of one exporter and one receiver share.
type world struct {
	ca     *testca.CA
	signer Signer
	from   Exporter
}

func newWorld(t testing.TB) *world {
	ca := testca.New(t)
	return &world{ca: ca, signer: signerOf(ca, west, mesh.PathCatalog), from: Exporter{
		Federation: testca.Federation, Verifier: ca.Verifier("east", west),
		Member: &mesh.Member{Name: west, Incarnation: 7, Namespaces: []string{"shop"}},
	}}
}

func signerOf(ca *testca.CA, cluster mesh.ClusterName, path string) Signer {
	leaf := ca.LeafFor(cluster, path, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning})
	return Signer{Key: leaf.PrivateKey.(crypto.Signer), Chain: leaf.Certificate}
}

// tlsSigner has the right name and the usages of a TLS end.
func tlsSigner(ca *testca.CA) Signer {
	leaf := ca.LeafFor(west, mesh.PathCatalog, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth})
	return Signer{Key: leaf.PrivateKey.(crypto.Signer), Chain: leaf.Certificate}
}

func (w *world) sign(t testing.TB, revision, sequence uint64, services ...*mesh.ExportedService) *Holding {
	t.Helper()
	h, err := sign(w.draft(revision, sequence), entriesOf(t, services...), w.signer)
	if err != nil {
		t.Fatalf("sign: %v", err)
	}
	return h
}

// entriesOf encodes services whatever an exporter may announce, as a hostile one would.
func entriesOf(t interface{ Fatal(...any) }, services ...*mesh.ExportedService) []*entry {
	entries := make([]*entry, len(services))
	for i, s := range services {
		b, err := encode(s)
		if err != nil {
			t.Fatal(err)
		}
		entries[i] = &entry{name: s.Name, hash: sha256.Sum256(b), encoded: b, service: s}
	}
	slices.SortFunc(entries, func(a, b *entry) int { return compareNames(a.name, b.name) })
	return entries
}

// inUse makes a catalogue's services.
func inUse(services ...*mesh.ExportedService) map[mesh.ServiceName]*mesh.ExportedService {
	out := map[mesh.ServiceName]*mesh.ExportedService{}
	for _, s := range services {
		out[s.Name] = s
	}
	return out
}

func (w *world) draft(revision, sequence uint64) Draft {
	return Draft{
		Cluster: west, Federation: testca.Federation, IssuedUnix: 1,
		Version: mesh.CatalogueVersion{Incarnation: 7, Revision: revision, Sequence: sequence},
	}
}

func service(ns, name string, healthy uint32) *mesh.ExportedService {
	return &mesh.ExportedService{
		Name:       mesh.ServiceName{Namespace: ns, Name: name},
		Ports:      []mesh.Port{{Name: "http", Number: 8080, Protocol: mesh.HTTP}},
		Identities: []string{ns + "/" + name},
		Slots: []mesh.Slot{
			{Index: 0, Generation: 1, Zone: "us-a", Labels: map[string]string{"version": "v1"}, Healthy: healthy, Total: 2},
			{Index: 3, Generation: 9, Zone: "us-b", Labels: map[string]string{"version": "v2", "app": name}, Healthy: 1, Total: 1},
		},
		To:              []mesh.ClusterName{"east", "north"},
		VirtualServices: [][]byte{[]byte(`{"kind":"VirtualService"}`)},
	}
}

func TestVerifyGivesWhatWasSigned(t *testing.T) {
	w := newWorld(t)
	reviews, inventory := service("shop", "reviews", 2), service("shop", "inventory", 1)
	reviews.Served, reviews.Slots[1].Down = true, []uint32{8080}
	signed := w.sign(t, 1, 1, reviews, inventory)
	raw, err := Marshal(signed)
	if err != nil {
		t.Fatal(err)
	}
	wire, err := Unmarshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Verify(wire, w.from, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &mesh.Catalogue{Cluster: west, Version: signed.Version(), Services: inUse(reviews, inventory)}
	if diff := cmp.Diff(want, got.Catalogue); diff != "" {
		t.Errorf("catalogue differs (-signed +verified):\n%s", diff)
	}
	if !got.SameServices(signed) || len(got.Findings) != 0 {
		t.Errorf("same = %v, findings = %v", got.SameServices(signed), got.Findings)
	}
}

func TestVerifyRefuses(t *testing.T) {
	w := newWorld(t)
	other := testca.New(t)
	good := func() *pb.Snapshot {
		return proto.CloneOf(w.sign(t, 2, 5, service("shop", "inventory", 1), service("shop", "reviews", 2)).Wire())
	}
	by := func(s Signer, d Draft) *pb.Snapshot {
		h, err := sign(d, entriesOf(t, service("shop", "reviews", 2)), s)
		if err != nil {
			t.Fatal(err)
		}
		return h.Wire()
	}
	resigned := func(change func(*pb.Manifest)) *pb.Snapshot {
		s := good()
		var m pb.Manifest
		if err := proto.Unmarshal(s.Manifest.Payload, &m); err != nil {
			t.Fatal(err)
		}
		change(&m)
		payload, err := proto.Marshal(&m)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := w.signer.Key.Sign(nil, digest(payload), crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		s.Manifest.Payload, s.Manifest.Signature = payload, signature
		return s
	}
	edit := func(change func(*pb.Snapshot)) *pb.Snapshot { s := good(); change(s); return s }
	tests := []struct {
		reason string
		wire   *pb.Snapshot
		want   string
	}{
		{"nothing at all", &pb.Snapshot{}, "no manifest"},
		{"payload changed after signing", edit(func(s *pb.Snapshot) { s.Manifest.Payload[9] ^= 1 }), "signature does not match"},
		{"signature of another domain", edit(func(s *pb.Snapshot) { s.Manifest.Signature[9] ^= 1 }), "signature does not match"},
		{"no certificate", edit(func(s *pb.Snapshot) { s.Manifest.Chain = nil }), "0 certificates"},
		{"endless chain", edit(func(s *pb.Snapshot) { s.Manifest.Chain = make([][]byte, 9) }), "9 certificates"},
		{"certificate is noise", edit(func(s *pb.Snapshot) { s.Manifest.Chain[0] = []byte("x") }), "verify certificate"},
		{"signed under a foreign root", by(signerOf(other, west, mesh.PathCatalog), w.draft(1, 1)), "unknown authority"},
		{"signed by another member", by(signerOf(w.ca, "east", mesh.PathCatalog), w.draft(1, 1)), "signer is spiffe://east."},
		{"signed by a leaf of another purpose", by(signerOf(w.ca, west, mesh.PathFederation), w.draft(1, 1)), "signer is"},
		{"signed by a leaf that is not meant for it", by(tlsSigner(w.ca), w.draft(1, 1)), "not meant for this use"},
		{"signed by a workload", by(signerOf(w.ca, west, "/ns/shop/sa/reviews"), w.draft(1, 1)), "signer is"},
		{"manifest of another cluster", resigned(func(m *pb.Manifest) { m.Cluster = "north" }), `cluster "north"`},
		{"manifest of another federation", resigned(func(m *pb.Manifest) { m.Federation = "a.b" }), `federation "a.b"`},
		{"an earlier life of the cluster", resigned(func(m *pb.Manifest) { m.Version.Incarnation = 6 }), "incarnation 6"},
		{"an incarnation the document does not know", resigned(func(m *pb.Manifest) { m.Version.Incarnation = 8 }), "incarnation 8"},
		{"revision used up", resigned(func(m *pb.Manifest) { m.Version.Revision = math.MaxUint64 }), "revision leaps"},
		{"sequence used up", resigned(func(m *pb.Manifest) { m.Version.Sequence = math.MaxUint64 }), "sequence leaps"},
		{"entries not sorted", resigned(func(m *pb.Manifest) { m.Entries[0], m.Entries[1] = m.Entries[1], m.Entries[0] }), "does not match its hash"},
		{"one service twice", resigned(func(m *pb.Manifest) { m.Entries[0] = m.Entries[1] }), "does not match its hash"},
		{"service missing", edit(func(s *pb.Snapshot) { s.Services = s.Services[:1] }), "more services than the 1 that came"},
		{"service added", edit(func(s *pb.Snapshot) { s.Services = append(s.Services, s.Services[0]) }), "names 2 services, 3 came"},
		{"service exchanged", edit(func(s *pb.Snapshot) { s.Services[0] = s.Services[1] }), "does not match its hash"},
		{"service too big", edit(func(s *pb.Snapshot) { s.Services[0] = make([]byte, MaxServiceBytes+1) }), "bytes"},
		{"too many services", edit(func(s *pb.Snapshot) { s.Services = make([][]byte, MaxServices+1) }), "10001 services"},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			if _, err := Verify(tt.wire, w.from, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify: got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestVerifyLeavesOutOneBadService(t *testing.T) {
	w := newWorld(t)
	bad := w.sign(t, 1, 1, service("payments", "ledger", 1), service("shop", "reviews", 1))
	got, err := Verify(bad.Wire(), w.from, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Catalogue.Services) != 1 || len(got.Findings) != 1 || got.Findings[0].Code != mesh.CodeImportNotGranted {
		t.Errorf("services = %v, findings = %v; want reviews only, and one finding import_not_granted", got.Catalogue.Services, got.Findings)
	}
	// The exporter is granted the namespace later: the same bytes are then good.
	granted := w.from
	granted.Member = &mesh.Member{Name: west, Incarnation: 7, Namespaces: []string{"*"}}
	if got, err = Verify(bad.Wire(), granted, got); err != nil || len(got.Catalogue.Services) != 2 {
		t.Errorf("after the grant: %d services, %v; want 2", len(got.Catalogue.Services), err)
	}
}

// TestRulesAreCompiledOnce: the rules of a service are compiled when they are others, not when its pods are; and what the patterns
// of all come to is bounded: beyond it services keep their pods and lose their rules.
func TestRulesAreCompiledOnce(t *testing.T) {
	w := newWorld(t)
	w.from.Producer = func(_ mesh.ClusterName, s *mesh.ExportedService) *rule.Producer {
		return &rule.Producer{Cluster: west, Patterns: Patterns / 2}
	}
	ruled := func(healthy uint32, source string) []*mesh.ExportedService {
		var out []*mesh.ExportedService
		for _, name := range []string{"a", "b", "c"} {
			s := service("shop", name, healthy)
			s.VirtualServices = [][]byte{[]byte(source)}
			out = append(out, s)
		}
		return out
	}
	first, err := Verify(w.sign(t, 1, 1, ruled(1, "{}")...).Wire(), w.from, nil)
	if err != nil || first.Work.Compiled != 3 {
		t.Fatalf("three services compiled %d rules (%v)", first.Work.Compiled, err)
	}
	rules := map[string]bool{}
	for name, s := range first.Catalogue.Services {
		rules[name.Name] = s.Producer != nil
	}
	if diff := cmp.Diff(map[string]bool{"a": true, "b": true, "c": false}, rules); diff != "" || len(first.Findings) != 1 || first.Findings[0].Code != mesh.CodeImportPatterns {
		t.Errorf("who has rules (-want +got):\n%s; findings %v", diff, first.Findings)
	}
	second, err := Verify(w.sign(t, 1, 2, ruled(0, "{}")...).Wire(), w.from, first)
	if err != nil || second.Work.Decoded != 3 || second.Work.Compiled != 0 {
		t.Errorf("other health: decoded %d, compiled %d (%v), want 3 and none", second.Work.Decoded, second.Work.Compiled, err)
	}
	third, err := Verify(w.sign(t, 1, 3, ruled(0, `{"a":1}`)...).Wire(), w.from, second)
	if err != nil || third.Work.Compiled != 3 {
		t.Errorf("other rules: compiled %d (%v), want 3", third.Work.Compiled, err)
	}
}

func TestValidateNamesTheFault(t *testing.T) {
	tests := []struct {
		reason string
		change func(*mesh.ExportedService)
		want   string
	}{
		{"slots beyond the cap", func(s *mesh.ExportedService) {
			s.Slots = nil
			for i := range uint32(65) {
				s.Slots = append(s.Slots, mesh.Slot{Index: i})
			}
		}, "65 slots"},
		{"slot twice", func(s *mesh.ExportedService) { s.Slots[1].Index = 0 }, "occur twice"},
		{"more healthy than there are", func(s *mesh.ExportedService) { s.Slots[0].Healthy = 9 }, "9 healthy of 2"},
		{"down on a port it does not have", func(s *mesh.ExportedService) { s.Slots[0].Down = []uint32{81} }, "port 81"},
		{"down twice on one port", func(s *mesh.ExportedService) { s.Slots[0].Down = []uint32{8080, 8080} }, "down on 2 ports of 1"},
		{"weight that overflows", func(s *mesh.ExportedService) { s.Slots[0].Total = math.MaxUint32 }, "pods"},
		{"zone with a line break", func(s *mesh.ExportedService) { s.Slots[0].Zone = "a\nb" }, "zone"},
		{"label value too long", func(s *mesh.ExportedService) { s.Slots[0].Labels = map[string]string{"a": strings.Repeat("x", 64)} }, "label"},
		{"identity of another namespace", func(s *mesh.ExportedService) { s.Identities = []string{"payments/root"} }, "is not shop/<account>"},
		{"identity with a path", func(s *mesh.ExportedService) { s.Identities = []string{"shop/a/b"} }, "is not shop/<account>"},
		{"identities not sorted", func(s *mesh.ExportedService) { s.Identities = []string{"shop/b", "shop/a"} }, "not sorted"},
		{"no ports", func(s *mesh.ExportedService) { s.Ports = nil }, "0 ports"},
		{"port 0", func(s *mesh.ExportedService) { s.Ports[0].Number = 0 }, "port 0"},
		{"unknown protocol", func(s *mesh.ExportedService) { s.Ports[0].Protocol = "udp" }, "protocol"},
		{"consumer that cannot be", func(s *mesh.ExportedService) { s.To = []mesh.ClusterName{"join"} }, "reserved"},
		{"route too big", func(s *mesh.ExportedService) { s.VirtualServices[0] = make([]byte, MaxRouteBytes+1) }, "VirtualService has"},
		{"name no SNI can carry", func(s *mesh.ExportedService) { s.Name.Name = "UPPER" }, "DNS-1123"},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			s := service("shop", "reviews", 1)
			tt.change(s)
			if _, err := encode(s); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("encode: got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestVersionsOnlyGoForward(t *testing.T) {
	w := newWorld(t)
	held, err := Verify(w.sign(t, 3, 10, service("shop", "reviews", 1)).Wire(), w.from, nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		reason             string
		revision, sequence uint64
		healthy            uint32
		want               error
		text               string
	}{
		{"the same again", 3, 10, 1, nil, ""},
		{"the same version, other contents", 3, 10, 2, ErrConflict, ""},
		{"sequence back", 3, 9, 1, ErrOld, ""},
		{"revision back, sequence ahead", 2, 99, 1, ErrOld, ""},
		{"sequence on", 3, 11, 1, nil, ""},
		{"a new election starts its sequence anew", 4, 1, 1, nil, ""},
		{"revision at the limit", 3 + maxJump, 1, 1, nil, ""},
		{"revision beyond the limit", 4 + maxJump, 1, 1, nil, "revision leaps"},
		{"sequence beyond the limit", 3, 11 + maxJump, 1, nil, "sequence leaps"},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			_, err := Verify(w.sign(t, tt.revision, tt.sequence, service("shop", "reviews", tt.healthy)).Wire(), w.from, held)
			if tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && tt.text == "" && err != nil ||
				tt.text != "" && (err == nil || !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("got %v, want %v %s", err, tt.want, tt.text)
			}
		})
	}
}

func TestDelta(t *testing.T) {
	w := newWorld(t)
	now := []*mesh.ExportedService{service("shop", "a", 1), service("shop", "b", 2), service("shop", "c", 1)}
	first := w.sign(t, 1, 1, service("shop", "a", 1), service("shop", "b", 1))
	second := w.sign(t, 1, 2, now...)
	third := w.sign(t, 1, 3, service("shop", "c", 1))
	held, err := Verify(first.Wire(), w.from, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := Diff(first, second)
	if len(d.Changed) != 2 {
		t.Errorf("delta carries %d services, want 2 (b and c)", len(d.Changed))
	}
	if _, err := Apply(Diff(second, third), w.from, held); !errors.Is(err, ErrMismatch) {
		t.Errorf("a delta was skipped: got %v, want ErrMismatch", err)
	}
	if _, err := Apply(d, w.from, nil); !errors.Is(err, ErrMismatch) {
		t.Errorf("nothing held: got %v, want ErrMismatch", err)
	}
	got, err := Apply(d, w.from, held)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&mesh.Catalogue{Cluster: west, Version: second.Version(), Services: inUse(now...)}, got.Catalogue); diff != "" {
		t.Errorf("catalogue differs (-want +got):\n%s", diff)
	}
	if _, err := Apply(Diff(nil, first), w.from, got); !errors.Is(err, ErrOld) {
		t.Errorf("a delta back: got %v, want ErrOld", err)
	}
}

func TestBoundsBeforeDecode(t *testing.T) {
	many := func(field byte, n int) []byte { return []byte(strings.Repeat(string([]byte{field<<3 | 2, 0}), n)) }
	wrap := func(field byte, b []byte) []byte {
		var out []byte
		out = append(out, field<<3|2)
		for n := len(b); ; n >>= 7 {
			if n < 0x80 {
				return append(append(out, byte(n)), b...)
			}
			out = append(out, byte(n)|0x80)
		}
	}
	tests := []struct {
		reason string
		raw    []byte
		ok     bool
	}{
		{"empty", nil, true},
		{"services at the limit", wrap(1, many(2, MaxServices)), true},
		{"services beyond it", wrap(1, many(2, MaxServices+1)), false},
		{"changed services beyond it", wrap(2, many(3, MaxServices+1)), false},
		{"certificates beyond it", wrap(1, wrap(1, many(3, maxChain+1))), false},
		{"documents beyond it", wrap(4, many(1, maxDocuments+1)), false},
		{"unknown fields without end", many(15, maxFields+1), false},
		{"not a message", []byte{0xff}, false},
		{"too big", make([]byte, MaxBytes+1), false},
	}
	for _, tt := range tests {
		if err := CheckResponse(tt.raw); (err == nil) != tt.ok {
			t.Errorf("%s: CheckResponse = %v, want ok = %v", tt.reason, err, tt.ok)
		}
	}
}

func TestDecide(t *testing.T) {
	tests := []struct {
		policy Policy
		stale  bool
		want   Use
	}{
		{Withdraw, false, Use{Serve: true}},
		{"", true, Use{Serve: true}},
		{Serve, true, Use{Serve: true}},
		{Demote, true, Use{Serve: true, Last: true}},
		{Withdraw, true, Use{}},
		{"of-a-newer-version", true, Use{Serve: true}},
	}
	for _, tt := range tests {
		if got := Decide(tt.policy, tt.stale); got != tt.want {
			t.Errorf("Decide(%q, %v) = %+v, want %+v", tt.policy, tt.stale, got, tt.want)
		}
	}
}

func TestObserve(t *testing.T) {
	h := &Holding{Catalogue: &mesh.Catalogue{Cluster: west}}
	start := time.Unix(1000, 0)
	tests := []struct {
		reason    string
		after     time.Duration
		reachable bool
		stale     bool
	}{
		{"just heard", 0, true, false},
		{"away, within the limit", DefaultStaleAfter, false, false},
		{"away too long", DefaultStaleAfter + time.Millisecond, false, true},
		{"the clock went back", -time.Hour, false, false},
		{"its stream is up: nothing new is not stale", time.Hour, true, false},
	}
	for _, tt := range tests {
		got := Observe(h, Heard{At: start, Reachable: tt.reachable}, start.Add(tt.after))
		if got.Stale != tt.stale || got.Reachable != tt.reachable || h.Catalogue.Stale {
			t.Errorf("%s: stale = %v, want %v", tt.reason, got.Stale, tt.stale)
		}
	}
}

func BenchmarkVerify10000(b *testing.B) {
	w := newWorld(b)
	var services []*mesh.ExportedService
	for i := range MaxServices {
		services = append(services, service("shop", fmt.Sprintf("s%05d", i), 1))
	}
	whole := w.sign(b, 1, 1, services...)
	b.ResetTimer()
	for b.Loop() {
		if _, err := Verify(whole.Wire(), w.from, nil); err != nil {
			b.Fatal(err)
		}
	}
}

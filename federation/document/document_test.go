package document_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	pb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newKey(t testing.TB) document.Key {
	t.Helper()
	signer, err := ca.NewKey()
	must(t, err)
	issuer, err := ca.NewRoot("fed.test", signer, now)
	must(t, err)
	root, err := document.NewRoot(issuer.Certificate, pb.Root_ACTIVE)
	must(t, err)
	return document.Key{Root: root, Signer: signer}
}

func member(name mesh.ClusterName) document.Member {
	return document.Member{
		Member: mesh.Member{
			Name: name, Region: "eu", Namespaces: []string{"shop"},
			Gateways: []mesh.Gateway{{Address: netip.MustParseAddrPort("192.0.2.1:15443")}},
		},
		IntermediateKey: [32]byte{1, 2, 3},
	}
}

func found(t testing.TB, key document.Key) *document.Sealed {
	t.Helper()
	d, err := document.Found("fed.test", key, member("east"), now)
	must(t, err)
	return d
}

func TestTransitions(t *testing.T) {
	key := newKey(t)
	first := found(t, key)
	second, err := document.Admit(first, key, member("west"), now)
	must(t, err)
	until := now.Add(90 * 24 * time.Hour)
	third, err := document.Leave(second, key, "west", until, now)
	must(t, err)

	if m, _ := second.Member("west"); m == nil || m.Incarnation != 2 || m.Authority {
		t.Errorf("admitted as %+v, want incarnation 2", m)
	}
	if len(first.Members) != 1 || len(second.Members) != 2 {
		t.Error("a transition changed the document it started from")
	}
	tests := []struct {
		why  string
		do   func() (*document.Sealed, error)
		want error
	}{
		{"a name in use", func() (*document.Sealed, error) { return document.Admit(second, key, member("west"), now) }, document.ErrMember},
		{"a burnt name", func() (*document.Sealed, error) {
			return document.Admit(third, key, member("west"), until.Add(-time.Second))
		}, document.ErrBurnt},
		{"a name that was burnt once", func() (*document.Sealed, error) { return document.Admit(third, key, member("west"), until) }, nil},
		{"nobody leaves twice", func() (*document.Sealed, error) { return document.Leave(third, key, "west", until, now) }, document.ErrUnknown},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			got, err := test.do()
			if !errors.Is(err, test.want) || test.want != nil && test.want != document.ErrUnknown && hint.Of(err) == "" {
				t.Errorf("error %v with hint %q, want %v with a hint", err, hint.Of(err), test.want)
			}
			if err != nil {
				return
			}
			if _, ok := got.Member("west"); !ok {
				t.Error("west is not a member of the new document")
			}
		})
	}
	if _, err := document.Leave(second, key, "east", until, now); hint.Of(err) == "" {
		t.Errorf("the authority left: %v", err)
	}
	if _, err := document.Admit(first, key, member("join"), now); hint.Of(err) == "" {
		t.Errorf("a reserved name was admitted: %v", err)
	}
}

// TestNext is what a member refuses of a document that claims to follow its own.
func TestNext(t *testing.T) {
	key, other := newKey(t), newKey(t)
	first := found(t, key)
	second, err := document.Admit(first, key, member("west"), now)
	must(t, err)
	third, err := document.Admit(second, key, member("north"), now)
	must(t, err)
	rotated, err := document.Publish(first, key, other, now)
	must(t, err)
	// resign replaces content and signs it with k, as whoever holds k could.
	resign := func(k document.Key, change func(*pb.Document)) *pb.Signed { return resigned(t, second, k, change) }
	tests := []struct {
		why  string
		wire *pb.Signed
		want string // empty: accepted
	}{
		{"the true one", second.Wire(), ""},
		{"a new root, signed by the old and the new", rotated.Wire(), ""},
		{"the one after", third.Wire(), "missing"},
		{"itself", first.Wire(), "not newer"},
		{"signed by a root nobody trusts", resign(other, nil), "no root"},
		{"a changed byte", flipped(second), ""},
		{"a new root that has not signed", &pb.Signed{Payload: rotated.Wire().Payload, Signatures: rotated.Wire().Signatures[:1]}, "has not signed"},
		{"only the new root has signed", &pb.Signed{Payload: rotated.Wire().Payload, Signatures: rotated.Wire().Signatures[1:]}, "no root"},
		{"another federation", resign(key, func(d *pb.Document) { d.Federation = "fed2.test" }), "federation"},
		{"another previous hash", resign(key, func(d *pb.Document) { d.PrevHash = make([]byte, 32) }), "previous"},
		{"no previous hash", resign(key, func(d *pb.Document) { d.PrevHash = nil }), "previous"},
		{"an older term", resign(key, func(d *pb.Document) { d.Term = 0 }), "start at 1"},
		{"a jump to the last seq", resign(key, func(d *pb.Document) { d.Seq = 1<<64 - 1 }), "missing"},
		{"a newer wire version", resign(key, func(d *pb.Document) { d.MinVersion = 99 }), "wire version"},
		{"no members", resign(key, func(d *pb.Document) { d.Members = nil }), "authority"},
		{"two authorities", resign(key, func(d *pb.Document) { d.Members[1].Authority = true }), "authority"},
		{"a name twice", resign(key, func(d *pb.Document) { d.Members[1].Name = "east"; d.Members[1].Authority = false }), "twice"},
		{"a name both used and burnt", resign(key, func(d *pb.Document) { d.Burnt = []*pb.BurntName{{Name: "west"}} }), "burnt"},
		{"an upper-case name", resign(key, func(d *pb.Document) { d.Members[1].Name = "West" }), "DNS-1123"},
		{"a reserved name", resign(key, func(d *pb.Document) { d.Members[1].Name = "join" }), "reserved"},
		{"a gateway without port", resign(key, func(d *pb.Document) { d.Members[1].Gateways = []*pb.Gateway{{Address: "192.0.2.1"}} }), "gateway"},
		{"a gateway by name", resign(key, func(d *pb.Document) { d.Members[1].Gateways = []*pb.Gateway{{Address: "gw.test:15443"}} }), "gateway"},
		{"a gateway nowhere", resign(key, func(d *pb.Document) { d.Members[1].Gateways = []*pb.Gateway{{Address: "0.0.0.0:15443"}} }), "gateway"},
		{"an empty gateway", resign(key, func(d *pb.Document) { d.Members[1].Gateways = []*pb.Gateway{nil} }), "gateway"},
		{"a namespace that is none", resign(key, func(d *pb.Document) { d.Members[1].Namespaces = []string{"a/b"} }), "namespace"},
		{"a region with markup", resign(key, func(d *pb.Document) { d.Members[1].Region = "<script>" }), "region"},
		{"a short key hash", resign(key, func(d *pb.Document) { d.Members[1].IntermediateKey = []byte{1} }), "SHA-256"},
		{"incarnation 0", resign(key, func(d *pb.Document) { d.Members[1].Incarnation = 0 }), "incarnation"},
		{"a root without state", resign(key, func(d *pb.Document) { d.Roots[0].State = 0 }), "state"},
		{"a root twice", resign(key, func(d *pb.Document) {
			d.Roots = append(d.Roots, &pb.Root{Certificate: d.Roots[0].Certificate, State: pb.Root_PUBLISHED})
		}), "twice"},
		{"no root", resign(key, func(d *pb.Document) { d.Roots = nil }), "sign"},
		{"junk as a root", resign(key, func(d *pb.Document) { d.Roots[0].Certificate = []byte("x") }), "root"},
		{"1,001 members", resign(key, func(d *pb.Document) {
			for i := range 1000 {
				d.Members = append(d.Members, proto.CloneOf(d.Members[1]))
				d.Members[i+2].Name = fmt.Sprintf("c%d", i)
			}
		}), "1002 members"},
		{"more than 1 MiB", resign(key, func(d *pb.Document) { d.Members[1].Region = strings.Repeat("x", 1<<20) }), "bytes"},
		{"nothing", &pb.Signed{}, "federation name"},
		{"a signature of 1 MB", &pb.Signed{Payload: second.Wire().Payload, Signatures: []*pb.Signature{{RootId: key.Root.ID[:], Signature: make([]byte, 1<<20)}}}, "bytes"},
		{"a thousand signatures", &pb.Signed{Payload: second.Wire().Payload, Signatures: make([]*pb.Signature, 1000)}, "signatures"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			_, err := document.Next(first, test.wire)
			if test.why == "a changed byte" {
				if err == nil {
					t.Fatal("accepted")
				}
				return
			}
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
	if _, err := document.Next(first, third.Wire()); !errors.Is(err, document.ErrGap) {
		t.Errorf("error %v, want ErrGap", err)
	}
}

func TestConflict(t *testing.T) {
	key, other := newKey(t), newKey(t)
	first := found(t, key)
	west, err := document.Admit(first, key, member("west"), now)
	must(t, err)
	north, err := document.Admit(first, key, member("north"), now)
	must(t, err)
	if err := document.Conflict(west, first, west.Wire()); err != nil {
		t.Errorf("the same document: %v", err)
	}
	var alarm *document.Alarm
	if err := document.Conflict(west, first, north.Wire()); !errors.As(err, &alarm) || hint.Of(err) == "" {
		t.Errorf("two signed truths: %v, want an alarm with a hint", err)
	}
	forged := resigned(t, west, other, func(d *pb.Document) { d.IssuedUnix++ })
	if err := document.Conflict(west, first, forged); err == nil || errors.As(err, new(*document.Alarm)) {
		t.Errorf("a forgery: %v, want an error that is no alarm: else anybody could raise one", err)
	}
}

// TestChain is what a joiner accepts, which knows nothing but pins.
func TestChain(t *testing.T) {
	key, mallory := newKey(t), newKey(t)
	first := found(t, key)
	second, err := document.Admit(first, key, member("west"), now)
	must(t, err)
	third, err := document.Admit(second, key, member("north"), now)
	must(t, err)
	forged, err := document.Found("fed.test", mallory, member("east"), now)
	must(t, err)
	forged2, err := document.Admit(forged, mallory, member("west"), now)
	must(t, err)
	withRoot := resigned(t, forged2, mallory, func(d *pb.Document) {
		d.Roots = append(d.Roots, &pb.Root{Certificate: key.Root.Certificate.Raw, State: pb.Root_PUBLISHED})
	})
	pins := [][]byte{key.Root.ID[:]}
	tests := []struct {
		why   string
		chain []*pb.Signed
		floor document.Version
		ok    bool
	}{
		{"whole", []*pb.Signed{first.Wire(), second.Wire(), third.Wire()}, document.Version{Term: 1, Seq: 1}, true},
		{"from the middle", []*pb.Signed{second.Wire(), third.Wire()}, document.Version{Term: 1, Seq: 2}, true},
		{"the last alone", []*pb.Signed{third.Wire()}, document.Version{Term: 1, Seq: 2}, true},
		{"older than the token", []*pb.Signed{first.Wire()}, document.Version{Term: 1, Seq: 2}, false},
		{"with a hole", []*pb.Signed{first.Wire(), third.Wire()}, document.Version{Term: 1, Seq: 1}, false},
		{"backwards", []*pb.Signed{second.Wire(), first.Wire()}, document.Version{Term: 1, Seq: 1}, false},
		{"of an unpinned root", []*pb.Signed{forged.Wire(), forged2.Wire()}, document.Version{Term: 1, Seq: 1}, false},
		{"that lists the pinned root without its signature", []*pb.Signed{withRoot}, document.Version{Term: 1, Seq: 1}, false},
		{"true ones before forged ones", []*pb.Signed{first.Wire(), forged2.Wire()}, document.Version{Term: 1, Seq: 1}, false},
		{"empty", nil, document.Version{}, false},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			chain, err := document.Chain(test.chain, pins, test.floor)
			if (err == nil) != test.ok || err == nil && len(chain) != len(test.chain) {
				t.Errorf("error %v, want accepted %v", err, test.ok)
			}
		})
	}
}

// TestProperties: whatever sequence of admissions and departures, every document is accepted after the one before and
// after no other, decodes to what it was made of, and no name is a member twice.
func TestProperties(t *testing.T) {
	key := newKey(t)
	rapid.Check(t, func(t *rapid.T) {
		d, err := document.Found("fed.test", key, member("east"), now)
		if err != nil {
			t.Fatal(err)
		}
		chain, clock := []*document.Sealed{d}, now
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			clock = clock.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "days")) * 24 * time.Hour)
			name := mesh.ClusterName(rapid.SampledFrom([]string{"west", "north", "c4"}).Draw(t, "name"))
			last := chain[len(chain)-1]
			var next *document.Sealed
			if rapid.Bool().Draw(t, "admit") {
				next, err = document.Admit(last, key, member(name), clock)
			} else {
				next, err = document.Leave(last, key, name, clock.Add(ca.IntermediateLife), clock)
			}
			if err == nil {
				chain = append(chain, next)
			}
		}
		for i, s := range chain {
			for j, prev := range chain {
				got, err := document.Next(prev, s.Wire())
				if (err == nil) != (i == j+1) {
					t.Fatalf("document %s after %s: %v", s.Version, prev.Version, err)
				}
				if err == nil && (got.Hash != s.Hash || cmp.Diff(got.Trust("x", nil), s.Trust("x", nil), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })) != "") {
					t.Fatalf("document %s decodes to something else", s.Version)
				}
			}
		}
	})
}

// FuzzDocument starts from documents on disk: the fuzzing processes share their key.
func FuzzDocument(f *testing.F) {
	first, next := stored(f)
	second, err := document.Next(first, next)
	must(f, err)
	pin := first.Roots[0].ID[:]
	for _, wire := range []*pb.Signed{first.Wire(), next} {
		data, err := proto.Marshal(wire)
		must(f, err)
		f.Add(data)
		f.Add(append(data, make([]byte, document.MaxBytes-len(data))...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		wire, err := document.Unmarshal(data)
		if err != nil {
			return
		}
		if s, err := document.Next(first, wire); err == nil && !bytes.Equal(s.Wire().Payload, next.Payload) {
			t.Errorf("a document nobody signed was accepted: %x", data)
		}
		if s, err := document.Chain([]*pb.Signed{wire}, [][]byte{pin}, document.Version{}); err == nil && s[0].Hash != first.Hash && s[0].Hash != second.Hash {
			t.Errorf("a chain nobody signed was accepted: %x", data)
		}
		_, _ = document.Stored(wire)
		_ = document.Conflict(second, first, wire)
	})
}

func resigned(t testing.TB, s *document.Sealed, k document.Key, change func(*pb.Document)) *pb.Signed {
	t.Helper()
	var d pb.Document
	must(t, proto.Unmarshal(s.Wire().Payload, &d))
	if change != nil {
		change(&d)
	}
	payload, err := proto.Marshal(&d)
	must(t, err)
	return &pb.Signed{Payload: payload, Signatures: []*pb.Signature{{RootId: k.Root.ID[:], Signature: signature(t, k, payload)}}}
}

func flipped(s *document.Sealed) *pb.Signed {
	p := bytes.Clone(s.Wire().Payload)
	i := bytes.Index(p, []byte("west"))
	p[i] ^= 1
	return &pb.Signed{Payload: p, Signatures: s.Wire().Signatures}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

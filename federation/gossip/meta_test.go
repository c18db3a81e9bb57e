package gossip

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/mesh"
)

// largest is the longest metadata there is.
func largest() Meta {
	m := Meta{Incarnation: 1<<64 - 1, Term: 1<<64 - 1, Seq: 1<<64 - 1, Leaving: true}
	for range maxGateways {
		m.Gateways = append(m.Gateways, netip.MustParseAddrPort("[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535"))
	}
	return m
}

func signWith(size int) func([]byte) ([]byte, error) {
	return func([]byte) ([]byte, error) { return bytes.Repeat([]byte{'s'}, size), nil }
}

func anyone(mesh.ClusterName, []byte, []byte) error { return nil }

func TestMetaSize(t *testing.T) {
	m := largest()
	m.Gateways = append(m.Gateways, m.Gateways[0]) // one too many is not said
	raw, err := m.encode("west", signWith(maxSignature))
	if err != nil || len(raw) > maxMeta {
		t.Fatalf("encode: %d bytes, %v", len(raw), err)
	}
	got, err := open("west", raw, anyone)
	if diff := cmp.Diff(largest(), got, cmpopts.EquateComparable(netip.AddrPort{})); err != nil || diff != "" {
		t.Errorf("open: %v (-want +got):\n%s", err, diff)
	}
	if _, err := m.encode("west", signWith(maxSignature+1)); err == nil {
		t.Error("a signature that nobody would read was sent")
	}
}

// TestSignatureBeforeParsing: what no member signed is not even looked at.
func TestSignatureBeforeParsing(t *testing.T) {
	forged := errors.New("not its signature")
	damaged := append([]byte{format, 2, 's', 's'}, bytes.Repeat([]byte{0xff}, 300)...)
	calls := 0
	_, err := open("west", damaged, func(c mesh.ClusterName, message, signature []byte) error {
		calls++
		if want := "isthmus gossip v2\x00west\x00" + string(damaged[4:]); string(message) != want || string(signature) != "ss" {
			t.Errorf("verified %q with %q", message, signature)
		}
		return forged
	})
	if !errors.Is(err, forged) || calls != 1 {
		t.Errorf("forged and damaged: %v after %d calls, want the signature's error", err, calls)
	}
}

func TestDamagedMeta(t *testing.T) {
	signed := func(payload ...byte) []byte { return append([]byte{format, 2, 's', 's'}, payload...) }
	long := bytes.Repeat([]byte{1}, 300)
	tests := []struct {
		reason string
		raw    []byte
		want   string
	}{
		{"nothing", nil, "format is short"},
		{"another format", []byte{1, 0}, "format 1, want 2"},
		{"no signature", []byte{format}, "length of the signature is short"},
		{"a signature of 255 bytes", append([]byte{format, 255}, long...), "signature has 255 bytes"},
		{"a signature beyond the end", []byte{format, 9, 1}, "signature is short"},
		{"too long", append(signed(), make([]byte, maxMeta)...), "bytes, 512 at most"},
		{"no payload", signed(), "flags is short"},
		{"a gateway of 255 bytes", append(signed(0, 1, 1, 1, 1, 255), long...), "gateway has 255 bytes, 18 at most"},
		{"a gateway beyond the end", signed(0, 1, 1, 1, 1, 18, 1), "gateway is short"},
		{"255 gateways", append(signed(0, 1, 1, 1, 255), long...), "255 gateways"},
		{"a gateway that is no address", signed(0, 1, 1, 1, 1, 3, 1, 2, 3), "no address"},
		{"a number without an end", signed(0, 0x80, 0x80), "incarnation is short"},
		{"something after the end", signed(0, 1, 1, 1, 0, 9), "1 bytes follow"},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			_, err := open("west", tt.raw, anyone)
			if !errors.Is(err, foreign.ErrDamaged) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzMeta(f *testing.F) {
	small := Meta{Incarnation: 3, Term: 1, Seq: 200, Gateways: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[::1]:2")}}
	for _, m := range []Meta{{}, small, largest()} {
		raw, err := m.encode("west", signWith(72))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(append(raw, make([]byte, maxMeta-len(raw))...))
	}
	f.Add(append([]byte{format, 0, 0, 1, 1, 1, 1, 255}, make([]byte, 300)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := open("west", raw, anyone)
		if err != nil {
			return
		}
		again, err := parse(m.payload())
		if err != nil || !cmp.Equal(m, again, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()) {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
	})
}

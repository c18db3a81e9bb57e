package gossip

import (
	"bytes"
	"compress/lzw"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"isthmus.dev/isthmus/internal/foreign"
)

// Frames as a hostile member makes them.

const (
	msgUser     = 8
	msgCompress = 9
	msgEncrypt  = 10
	msgLabel    = 244
)

func compressed(plain []byte) []byte {
	var z bytes.Buffer
	w := lzw.NewWriter(&z, lzw.LSB, 8)
	w.Write(plain)
	w.Close()
	out := []byte{msgCompress, 0x82, 0xa4, 'A', 'l', 'g', 'o', 0x00, 0xa3, 'B', 'u', 'f', 0xda}
	return append(binary.BigEndian.AppendUint16(out, uint16(z.Len())), z.Bytes()...)
}

func compound(parts ...[]byte) []byte {
	out := []byte{byte(msgCompound), byte(len(parts))}
	for _, p := range parts {
		out = binary.BigEndian.AppendUint16(out, uint16(len(p)))
	}
	return append(out, bytes.Join(parts, nil)...)
}

func checked(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{byte(msgChecked)}, crc32.ChecksumIEEE(b)), b...)
}

func labelled(b []byte) []byte { return append([]byte{msgLabel, 1, 'x'}, b...) }

// bomb is 31 kB on the wire and 39 MiB in the library, just below its bound.
func bomb() []byte { return compressed(make([]byte, 39<<20)) }

func times(n int, b []byte) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = b
	}
	return out
}

func TestScreenPacket(t *testing.T) {
	ping := packet(byte(msgPing), "SeqNo", uint32(1), "Node", "west")
	alive := packet(byte(msgAlive), "Incarnation", uint32(1), "Node", "west", "Meta", make([]byte, maxMeta))
	tests := []struct {
		reason string
		raw    []byte
		want   int    // messages
		err    string // empty: taken
	}{
		{"a ping", ping, 1, ""},
		{"with a checksum", checked(ping), 1, ""},
		{"a compound", compound(ping, alive, ping), 3, ""},
		{"a compound with a checksum", checked(compound(ping, alive)), 2, ""},
		{"the largest compound", compound(times(255, ping)...), 255, ""},
		{"nothing", nil, 0, "kind is short"},
		{"compressed", compressed(ping), 0, "kind 9 "},
		{"compressed twice", compressed(compressed(ping)), 0, "kind 9 "},
		{"encrypted", append([]byte{msgEncrypt}, ping...), 0, "kind 10 "},
		{"encrypted, the old way", append([]byte{1}, make([]byte, 600)...), 0, "has 600 bytes"},
		{"labelled", labelled(ping), 0, "kind 244 "},
		{"compressed below a checksum", checked(compressed(ping)), 0, "kind 9 "},
		{"labelled below a checksum", checked(labelled(ping)), 0, "kind 244 "},
		{"two checksums", checked(checked(ping)), 0, "kind 12 "},
		{"compressed in a compound", compound(ping, compressed(ping)), 0, "kind 9 "},
		{"encrypted in a compound", compound(ping, append([]byte{msgEncrypt}, ping...)), 0, "kind 10 "},
		{"labelled in a compound", compound(labelled(ping), ping), 0, "kind 244 "},
		{"a checksum in a compound", compound(checked(ping)), 0, "kind 12 "},
		{"a compound in a compound", compound(ping, compound(ping)), 0, "kind 7 "},
		{"a user's message", append([]byte{msgUser}, "hello"...), 0, "kind 8 "},
		{"a full exchange", []byte{byte(msgPushPull), 0x80}, 0, "kind 6 "},
		{"too long a message", packet(byte(msgSuspect), "From", make([]byte, maxMessage)), 0, "bytes, 512 at most"},
		{"an empty part", compound(nil), 0, "a part is empty"},
		{"fewer lengths than parts", []byte{byte(msgCompound), 200, 0, 1}, 0, "lengths of parts is short"},
		{"a part beyond the end", []byte{byte(msgCompound), 1, 0, 9, 0}, 0, "part is short"},
		{"something after the parts", append(compound(ping), 0), 0, "1 bytes follow"},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			got, err := screenPacket(tt.raw)
			if tt.err == "" {
				if err != nil || got != tt.want {
					t.Errorf("%d messages, %v; want %d", got, err, tt.want)
				}
			} else if err == nil || !errors.Is(err, foreign.ErrDamaged) || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error is %v, want %q", err, tt.err)
			}
		})
	}
}

// exchange is a full exchange that announces that many nodes and has those.
func exchange(announced uint32, state uint32, nodes ...[]byte) []byte {
	header := packet(byte(msgPushPull), "Nodes", announced, "UserStateLen", state, "Join", uint32(1))
	return append(header, bytes.Join(nodes, nil)...)
}

func TestScreenStream(t *testing.T) {
	node := packet(0, "Name", "west", "Addr", make([]byte, 16), "Meta", make([]byte, maxMeta), "Incarnation", uint32(7), "Vsn", []byte{1, 5, 2, 0, 0, 0})[1:]
	ping := packet(byte(msgPing), "SeqNo", uint32(1), "Node", "west")
	failed := packet(byte(msgError), "Error", "no")
	list := append([]byte{0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x91}, 100)...)
	tests := []struct {
		reason  string
		raw     []byte
		allowed kinds
		err     string
	}{
		{"a ping", ping, requests, ""},
		{"an exchange", exchange(3, 0, node, node, node), requests, ""},
		{"as an answer", exchange(3, 0, node, node, node), answers, ""},
		{"an error as an answer", failed, answers, ""},
		{"an error as a request", failed, requests, "kind 13 "},
		{"a ping as an answer", ping, answers, "kind 0 "},
		{"compressed", compressed(exchange(0, 0)), requests, "kind 9 "},
		{"compressed, as an answer", compressed(exchange(0, 0)), answers, "kind 9 "},
		{"encrypted", []byte{msgEncrypt, 0, 0, 0, 1, 0}, requests, "kind 10 "},
		{"labelled", labelled(ping), requests, "kind 244 "},
		{"a user's message", packet(msgUser, "UserMsgLen", uint32(20<<20)), requests, "kind 8 "},
		{"a million nodes", exchange(1<<20, 0, node), requests, "announces 1048576 nodes"},
		{"a million nodes in another spelling", append([]byte{byte(msgPushPull), 0x81, 0xa5}, "nodeS\xce\x00\x10\x00\x00"...), requests, "announces 1048576 nodes"},
		{"two numbers of nodes", packet(byte(msgPushPull), "Nodes", uint32(1), "nodes", uint32(1<<20)), requests, "occurs twice"},
		{"state of a user", exchange(0, 20<<20), requests, "20971520 bytes of state"},
		{"fewer nodes than announced", exchange(2, 0, node), requests, "EOF"},
		{"a node with too much", exchange(1, 0, packet(0, "Meta", make([]byte, maxMeta+1))[1:]), requests, "513 bytes, 512 at most"},
		{"a node with too much of everything", exchange(1, 0, packet(0, "Meta", make([]byte, maxMeta), "Name", make([]byte, maxMeta), "Addr", make([]byte, 9))[1:]), requests, "a map has more than"},
		{"lists in lists", append(exchange(1, 0), list...), requests, "a value begins with 0x91"},
		{"a list in place of a map", []byte{byte(msgPushPull), 0x93, 1, 0, 0}, requests, "a map begins with 0x93"},
		{"seventeen fields", []byte{byte(msgPing), 0xde, 0, 17}, requests, "17 fields"},
		{"bytes that never come", []byte{byte(msgPing), 0x81, 0xa1, 'x', 0xc6, 0xff, 0xff, 0xff, 0xff}, requests, "bytes, 512 at most"},
		{"nothing", nil, requests, "EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			got, err := screenStream(iotest.OneByteReader(bytes.NewReader(tt.raw)), tt.allowed, 3)
			if tt.err == "" {
				if err != nil || !bytes.Equal(got, tt.raw) {
					t.Errorf("%q, %v; want it as it came", got, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error is %v, want %q", err, tt.err)
			}
		})
	}
}

// TestHostileFramesCostTheirSender runs against the real library: none of them reaches it, and gossip goes on.
func TestHostileFramesCostTheirSender(t *testing.T) {
	b := bomb()
	if len(b) > maxPacket {
		t.Fatalf("the bomb has %d bytes and fits no frame", len(b))
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t, 3)
		f.startAll()
		defer f.killAll()
		f.within(10*time.Second, "cold start", f.names, f.names, Ready)
		observer := f.nodes["c00"].list
		observer.mu.Lock()
		tr := observer.transport
		observer.mu.Unlock()
		refused := func() int {
			tr.mu.Lock()
			defer tr.mu.Unlock()
			return tr.refused
		}
		if n := refused(); n != 0 {
			t.Errorf("%d honest frames were refused", n)
		}

		frames := [][]byte{b, compound(b), checked(b), checked(compound(b)), labelled(b), compound(labelled(b)), append([]byte{msgEncrypt}, b...)}
		conn := f.open("c02", kindPackets)
		defer conn.Close()
		for range 20 {
			for _, b := range frames {
				if !write(conn, b) {
					t.Fatal("the connection ended with a frame that was dropped")
				}
			}
		}
		time.Sleep(time.Second)
		if got, want := refused(), 20*len(frames); got != want {
			t.Errorf("%d frames were refused, want %d", got, want)
		}
		for i, raw := range [][]byte{b, labelled(b), exchange(1<<20, 0), exchange(0, 20<<20)} {
			before := refused()
			stream := f.open("c02", kindStream)
			stream.Write(raw)
			io.Copy(io.Discard, stream) // until the library closes it
			stream.Close()
			if refused() != before+1 {
				t.Errorf("stream %d was not refused", i)
			}
		}
		time.Sleep(time.Minute)
		f.within(time.Second, "a minute after it", f.names, f.names, Ready)
		if got, want := refused(), 20*len(frames)+4; got != want {
			t.Errorf("in all %d were refused, want %d: honest ones were too", got, want)
		}
	})
}

// open dials c00 as a member.
func (f *federation) open(as string, kind byte) net.Conn {
	f.t.Helper()
	conn, err := f.net.Dial(context.Background(), as, "c00")
	if err != nil {
		f.t.Fatal(err)
	}
	conn.Write([]byte{kind})
	return conn
}

func FuzzScreenPacket(f *testing.F) {
	ping := packet(byte(msgPing), "SeqNo", uint32(1), "Node", "west")
	alive := packet(byte(msgAlive), "Incarnation", uint32(1), "Node", "west", "Meta", make([]byte, maxMeta))
	full := compound(times(maxPacket/(len(alive)+2)-1, alive)...)
	for _, b := range [][]byte{ping, compound(ping, ping), checked(compound(times(255, ping)...)), full, compressed(ping), labelled(ping), make([]byte, maxPacket)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		n, err := screenPacket(raw)
		if err != nil {
			return
		}
		// Whatever is taken has, in the library's own reading, only messages of the kinds taken.
		if messageKind(raw[0]) == msgChecked {
			raw = raw[5:]
		}
		parts := [][]byte{raw}
		if messageKind(raw[0]) == msgCompound {
			parts = nil
			at := 2 + 2*int(raw[1])
			for i := range int(raw[1]) {
				size := int(binary.BigEndian.Uint16(raw[2+2*i:]))
				parts = append(parts, raw[at:at+size])
				at += size
			}
		}
		if len(parts) != n {
			t.Errorf("%d messages, counted %d", len(parts), n)
		}
		for _, p := range parts {
			if most, ok := inPackets[messageKind(p[0])]; !ok || len(p)-1 > most {
				t.Errorf("%x was taken", p)
			}
		}
	})
}

func FuzzScreenStream(f *testing.F) {
	node := packet(0, "Name", "west", "Addr", make([]byte, 16), "Meta", make([]byte, maxMeta), "Vsn", []byte{1, 5, 2, 0, 0, 0})[1:]
	f.Add(exchange(1, 0, node))
	f.Add(exchange(100, 0, times(100, node)...))
	f.Add(packet(byte(msgPing), "SeqNo", uint32(1), "Node", "west"))
	f.Add(compressed(node))
	f.Fuzz(func(t *testing.T, raw []byte) {
		const nodes = 100
		got, err := screenStream(bytes.NewReader(raw), requests, nodes)
		if !bytes.HasPrefix(raw, got) || len(got) > 1+maxMessage+nodes*maxNode {
			t.Errorf("%d bytes were read of %d, %v", len(got), len(raw), err)
		}
	})
}

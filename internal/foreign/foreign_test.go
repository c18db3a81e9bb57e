package foreign

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReaderNamesWhatIsShort(t *testing.T) {
	tests := []struct {
		reason string
		raw    string
		read   func(*Reader)
		want   string // in the error; empty: none
	}{
		{"all there", "\x01ab\x00\x03", func(r *Reader) { r.Byte("a"); r.Bytes("b", 2, 2); r.Uint16("c") }, ""},
		{"nothing there", "", func(r *Reader) { r.Byte("flags") }, "flags is short: it has 1 bytes, 0 are left"},
		{"a length above what is left", "\xffab", func(r *Reader) { r.Bytes("gateway", int(r.Byte("length")), 255) }, "gateway is short: it has 255 bytes, 2 are left"},
		{"a length above its bound", "\xffab", func(r *Reader) { r.Bytes("gateway", int(r.Byte("length")), 18) }, "gateway has 255 bytes, 18 at most"},
		{"a negative length", "ab", func(r *Reader) { r.Bytes("gateway", -1, 18) }, "gateway has -1 bytes"},
		{"half a number", "\x01", func(r *Reader) { r.Uint32("crc") }, "crc is short"},
		{"a number without an end", "\x80\x80", func(r *Reader) { r.Uvarint("seq") }, "seq is short"},
		{"a number of ten full bytes", strings.Repeat("\xff", 10), func(r *Reader) { r.Uvarint("seq") }, "seq is above 64 bits"},
		{"a number of eleven bytes", strings.Repeat("\x80", 10) + "\x00", func(r *Reader) { r.Uvarint("seq") }, "seq is above 64 bits"},
		{"an empty frame", "\x00\x00a", func(r *Reader) { r.Frame("packet", 9) }, "packet is empty"},
		{"bytes after the end", "abc", func(r *Reader) { r.Byte("a") }, "2 bytes follow its end"},
		{"the first error stays", "", func(r *Reader) { r.Byte("first"); r.Fail("second") }, "first is short"},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			r := New("metadata", []byte(tt.raw))
			tt.read(r)
			err := r.End()
			if tt.want == "" {
				if err != nil {
					t.Errorf("error: %v", err)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), "metadata is damaged: "+tt.want) || !errors.Is(err, ErrDamaged) {
				t.Errorf("error is %v, want metadata is damaged: %s", err, tt.want)
			}
		})
	}
}

func TestStreamEndsAtItsBound(t *testing.T) {
	source := strings.NewReader("abcdef")
	r := From("state", source, 4)
	if got := string(r.Bytes("first", 3, 9)); got != "abc" || r.Err() != nil {
		t.Errorf("first = %q, %v", got, r.Err())
	}
	if r.Bytes("second", 2, 9); !errors.Is(r.Err(), ErrDamaged) {
		t.Errorf("two bytes where one is left: %v", r.Err())
	}
	if source.Len() != 3 {
		t.Errorf("%d bytes are left in the source, want the 3 that were not asked for in time", source.Len())
	}
	broken := From("state", iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("ab"))), 9)
	if broken.Bytes("all", 2, 2); !errors.Is(broken.Err(), iotest.ErrTimeout) || errors.Is(broken.Err(), ErrDamaged) {
		t.Errorf("a source that fails: %v", broken.Err())
	}
	if New("state", nil).Bytes("all", 1<<62, 1<<62) != nil {
		t.Error("a slice of nothing has bytes")
	}
}

func TestGuard(t *testing.T) {
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	read := func(raw []byte) (err error) {
		defer Guard(log, "frame", "west", &err)
		_ = raw[3]
		return io.EOF
	}
	if err := read(nil); err == nil || !strings.Contains(err.Error(), "frame: panic: runtime error: index out of range") {
		t.Errorf("error is %v", err)
	}
	if got := logged.String(); !strings.Contains(got, "peer=west") || !strings.Contains(got, "foreign_test.go") {
		t.Errorf("the log names neither peer nor place: %s", got)
	}
	if err := read(make([]byte, 4)); err != io.EOF {
		t.Errorf("without a panic the error is %v", err)
	}
	func() {
		defer Guard(nil, "frame", "west", nil)
		panic("nobody hears of it")
	}()
}

// FuzzReader takes fields as the first half of the input says from the second: slice and stream agree, and with
// encoding/binary.
func FuzzReader(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5}, []byte("\x01\x02\x03\x04\x05\x06\x07\x08\x09\xff"))
	f.Add(bytes.Repeat([]byte{3, 5}, 1000), bytes.Repeat([]byte{0xff}, 64<<10))
	f.Fuzz(func(t *testing.T, script, raw []byte) {
		a, b := New("input", raw), From("input", bytes.NewReader(raw), len(raw))
		for _, op := range script {
			before := a.Left()
			read := func(r *Reader) any {
				switch op % 6 {
				case 0:
					return uint64(r.Byte("byte"))
				case 1:
					return uint64(r.Uint16("number"))
				case 2:
					return r.Uint64("number")
				case 3:
					return r.Uvarint("varint")
				case 4:
					return string(r.Bytes("bytes", int(op), 200))
				}
				return string(r.Frame("frame", 1000))
			}
			if x, y := read(a), read(b); x != y {
				t.Fatalf("op %d of %d bytes: %v of a slice, %v of a stream", op, before, x, y)
			} else if op%6 == 3 && a.Err() == nil {
				if want, n := binary.Uvarint(raw[len(raw)-before:]); n != before-a.Left() || want != x {
					t.Fatalf("varint is %v in %d bytes, want %d in %d", x, before-a.Left(), want, n)
				}
			}
			if a.Left() > before || (a.Err() == nil) != (b.Err() == nil) {
				t.Fatalf("op %d: %d bytes left of %d; %v, %v", op, a.Left(), before, a.Err(), b.Err())
			}
		}
	})
}

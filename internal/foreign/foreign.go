// Package foreign reads bytes that somebody else made.
//
// Every hand-written parser of such bytes reads them through a [Reader]: it never reads past the end, a length is
// bounded by the caller before anything is taken or made, and its error names the field that was short or too long.
// Where a library's goroutine runs a parser of ours, [Guard] stands before it, so that a fault in it costs one message
// and not the process.
package foreign

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// ErrDamaged is in the chain of every error of a [Reader] that the bytes themselves have caused; an error of the source
// of a stream is not.
var ErrDamaged = errors.New("damaged")

// Reader takes one field after the other. After its first error every field is zero, so a parser may ask once, at the
// end. It is for one goroutine.
type Reader struct {
	what string    // what is read, for errors
	from io.Reader // nil: rest is everything
	rest []byte    // of a slice: what has not been taken
	left int       // bytes that may still be taken
	err  error
}

// New reads b, which is called what in errors.
func New(what string, b []byte) *Reader { return &Reader{what: what, rest: b, left: len(b)} }

// From reads r, of which no more than most bytes are taken.
func From(what string, r io.Reader, most int) *Reader {
	return &Reader{what: what, from: r, left: most}
}

// Err is the first error; nil if there was none.
func (r *Reader) Err() error { return r.err }

// Left is how many bytes there are, in a stream how many there may be.
func (r *Reader) Left() int {
	if r.err != nil {
		return 0
	}
	return r.left
}

// Fail makes a field's contents an error, unless there was one before.
func (r *Reader) Fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%s is %w: %s", r.what, ErrDamaged, fmt.Sprintf(format, args...))
	}
}

// End is Err, and an error if anything of a slice is left.
func (r *Reader) End() error {
	if r.from == nil && r.Left() > 0 {
		r.Fail("%d bytes follow its end", r.left)
	}
	return r.err
}

// Bytes takes the n bytes of a field that has at most most. Of a slice they are a part, with no room to grow.
func (r *Reader) Bytes(field string, n, most int) []byte {
	switch {
	case r.err != nil:
		return nil
	case n < 0 || n > most:
		r.Fail("%s has %d bytes, %d at most", field, n, most)
		return nil
	case n > r.left:
		r.Fail("%s is short: it has %d bytes, %d are left", field, n, r.left)
		return nil
	}
	r.left -= n
	if r.from == nil {
		b := r.rest[:n:n]
		r.rest = r.rest[n:]
		return b
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.from, b); err != nil {
		r.err = fmt.Errorf("%s: read %s: %w", r.what, field, err)
		return nil
	}
	return b
}

// Rest takes everything that is left of a slice.
func (r *Reader) Rest(field string) []byte {
	if r.from != nil {
		r.Fail("%s has no end", field)
		return nil
	}
	return r.Bytes(field, r.Left(), r.left)
}

// Byte takes one byte.
func (r *Reader) Byte(field string) byte { return byte(r.number(field, 1)) }

// Uint16, Uint32 and Uint64 take a big-endian number.
func (r *Reader) Uint16(field string) uint16 { return uint16(r.number(field, 2)) }

// Uint32 is like Uint16.
func (r *Reader) Uint32(field string) uint32 { return uint32(r.number(field, 4)) }

// Uint64 is like Uint16.
func (r *Reader) Uint64(field string) uint64 { return r.number(field, 8) }

func (r *Reader) number(field string, size int) uint64 {
	var whole [8]byte
	copy(whole[8-size:], r.Bytes(field, size, size))
	return binary.BigEndian.Uint64(whole[:])
}

// Uvarint takes a number in the encoding of protobuf and encoding/binary.
func (r *Reader) Uvarint(field string) uint64 {
	var v uint64
	for shift := 0; r.err == nil; shift += 7 {
		b := uint64(r.Byte(field))
		if shift > 63 || bits.Len64(b&0x7f)+shift > 64 {
			r.Fail("%s is above 64 bits", field)
			break
		}
		v |= b & 0x7f << shift
		if b < 0x80 && r.err == nil {
			return v
		}
	}
	return 0
}

// Frame takes a length of two bytes and what it says, at least one byte and at most most.
func (r *Reader) Frame(field string, most int) []byte {
	n := int(r.Uint16(field))
	if n == 0 {
		r.Fail("%s is empty", field)
	}
	return r.Bytes(field, n, most)
}

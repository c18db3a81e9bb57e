package translate

import (
	"fmt"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/xds"
)

// fieldNumber is the number of a field of a message.
type fieldNumber = protowire.Number

// number finds it by name, so that no number stands in the code.
func number(m proto.Message, field protoreflect.Name) fieldNumber {
	f := m.ProtoReflect().Descriptor().Fields().ByName(field)
	if f == nil {
		panic(fmt.Sprintf("%s has no field %s", m.ProtoReflect().Descriptor().FullName(), field))
	}
	return f.Number()
}

var wrapped = number(&wrapperspb.UInt32Value{}, "value")

// linker writes a resource. To link is to append: what a rule says was encoded when it was compiled, what is the same for
// all was encoded once, and between those fragments stand the few fields that only the whole mesh can say. To build the
// message and encode it took ten times as long.
type linker struct{ out []byte }

// linkers are kept, so that a resource costs no more memory than it has.
var linkers = sync.Pool{New: func() any { return &linker{} }}

// link makes a resource of the type of m: fill writes its fields.
func link(name string, m proto.Message, fill func(*linker)) xds.Resource {
	l := linkers.Get().(*linker)
	defer linkers.Put(l)
	l.out = l.out[:0]
	fill(l)
	return xds.Encoded(name, proto.MessageName(m), l.out)
}

// fragment appends what was encoded before.
func (l *linker) fragment(f rule.Fragment) { l.out = append(l.out, f...) }

// text appends a field that is a string; an empty one is left out.
func (l *linker) text(field fieldNumber, s string) {
	if s != "" {
		l.out = protowire.AppendTag(l.out, field, protowire.BytesType)
		l.out = protowire.AppendString(l.out, s)
	}
}

// count appends a field that is a wrapped number.
func (l *linker) count(field fieldNumber, n uint32) {
	at := l.open(field)
	if n != 0 {
		l.out = protowire.AppendTag(l.out, wrapped, protowire.VarintType)
		l.out = protowire.AppendVarint(l.out, uint64(n))
	}
	l.close(at)
}

// open begins a field that is a message: what is appended until close is inside.
func (l *linker) open(field fieldNumber) (at int) {
	l.out = protowire.AppendTag(l.out, field, protowire.BytesType)
	return len(l.out)
}

// close ends the message that was begun at a place: its length goes before it.
func (l *linker) close(at int) {
	n := len(l.out) - at
	size := protowire.SizeVarint(uint64(n))
	l.out = append(l.out, "0123456789"[:size]...)
	copy(l.out[at+size:], l.out[at:at+n])
	protowire.AppendVarint(l.out[:at], uint64(n))
}

// message appends a field that is a message of these fragments.
func (l *linker) message(field fieldNumber, parts ...rule.Fragment) {
	at := l.open(field)
	for _, part := range parts {
		l.fragment(part)
	}
	l.close(at)
}

// Keys and values of maps, by the encoding of maps (https://protobuf.dev/programming-guides/encoding/#maps).
const mapKey, mapValue fieldNumber = 1, 2

// textEntry appends an entry of a map of structpb.Value.
func (l *linker) textEntry(field fieldNumber, key, value string) {
	entry := l.open(field)
	l.text(mapKey, key)
	at := l.open(mapValue)
	l.text(stringValue, value)
	l.close(at)
	l.close(entry)
}

package gossip

import (
	"bufio"
	"bytes"
	"io"
	"strings"

	"isthmus.dev/isthmus/internal/foreign"
)

// What the library's protocol has, and what of it is taken. Compression, encryption and labels are off here, but the
// library unpacks them all the same: twenty frames of 31 kB kept one core busy for 34 s. So frames are looked at before
// the library sees them, and one that has anything else is dropped unread.

// messageKind is the first byte of a message of the protocol.
type messageKind byte

const (
	msgPing         messageKind = 0
	msgIndirectPing messageKind = 1
	msgAck          messageKind = 2
	msgSuspect      messageKind = 3
	msgAlive        messageKind = 4
	msgDead         messageKind = 5
	msgPushPull     messageKind = 6
	msgCompound     messageKind = 7
	msgNack         messageKind = 11
	msgChecked      messageKind = 12 // a checksum of four bytes, then a message or a compound
	msgError        messageKind = 13
)

// kinds are those taken, with the most bytes of each.
type kinds map[messageKind]int

// maxMessage is room for two member names, addresses and the names of the fields.
const maxMessage = 512

var (
	// inPackets are the messages of packets, alone or in a compound. User messages (8) are not used here.
	inPackets = kinds{
		msgPing: maxMessage, msgIndirectPing: maxMessage, msgAck: maxMessage, msgNack: maxMessage,
		msgSuspect: maxMessage, msgDead: maxMessage, msgAlive: maxMessage + maxMeta,
	}
	// requests are what a peer may send on a stream that it opened, answers on one that was opened to it.
	requests = kinds{msgPing: maxMessage, msgPushPull: 0}
	answers  = kinds{msgAck: maxMessage, msgPushPull: 0, msgError: maxMessage}
)

// Bounds of a full exchange (msgPushPull).
const (
	// spareNodes are how many nodes it may have beyond twice the members: those that left, and a newer document.
	spareNodes = 64
	// maxNode bytes of one of them.
	maxNode   = maxMessage + maxMeta
	maxFields = 16
	maxKey    = 32
)

// screenPacket gives the number of messages of a packet, or an error if it is not to be taken. A compound has no
// compounds in it: the library makes none.
func screenPacket(b []byte) (messages int, err error) {
	r := foreign.New("gossip frame", b)
	kind := messageKind(r.Byte("kind"))
	if kind == msgChecked {
		r.Uint32("checksum")
		kind = messageKind(r.Byte("kind"))
	}
	if kind != msgCompound {
		take(r, kind, inPackets, r.Rest("message"))
		return 1, r.End()
	}
	count := int(r.Byte("number of parts"))
	lengths := foreign.New("gossip frame", r.Bytes("lengths of parts", 2*count, 2*count))
	for range count {
		part := r.Bytes("part", int(lengths.Uint16("length of a part")), maxPacket)
		if len(part) == 0 {
			r.Fail("a part is empty")
			break
		}
		take(r, messageKind(part[0]), inPackets, part[1:])
	}
	return count, r.End()
}

// take fails r if a message of that kind and size is not to be taken.
func take(r *foreign.Reader, kind messageKind, allowed kinds, body []byte) {
	if most, ok := allowed[kind]; !ok {
		r.Fail("messages of kind %d are not taken", kind)
	} else if len(body) > most {
		r.Fail("a message of kind %d has %d bytes, %d at most", kind, len(body), most)
	}
}

// screenStream reads the one message a peer sends on a stream, whole. A full exchange may have that many nodes.
func screenStream(from io.Reader, allowed kinds, nodes int) ([]byte, error) {
	var message bytes.Buffer
	r := foreign.From("gossip stream", io.TeeReader(bufio.NewReader(from), &message), 1+maxMessage+nodes*maxNode)
	kind := messageKind(r.Byte("kind"))
	if _, ok := allowed[kind]; !ok {
		r.Fail("messages of kind %d are not taken", kind)
	}
	if kind != msgPushPull {
		flat(r, allowed[kind])
		return message.Bytes(), r.Err()
	}
	header := flat(r, maxMessage)
	// Anything after the nodes would be state of the user, and there is none.
	if n := header["nodes"]; n > uint64(nodes) || header["userstatelen"] != 0 {
		r.Fail("it announces %d nodes and %d bytes of state, %d and none at most", n, header["userstatelen"], nodes)
	}
	for range header["nodes"] {
		if flat(r, maxNode); r.Err() != nil {
			break
		}
	}
	return message.Bytes(), r.Err()
}

// flat reads one map of MessagePack that has no maps or lists in it, of at most most bytes. It gives its numbers, by
// their names in lower case: the library takes a field by its name in any case.
func flat(r *foreign.Reader, most int) map[string]uint64 {
	end := r.Left() - most
	count := int(r.Byte("map"))
	switch {
	case count&0xf0 == 0x80:
		count &= 0x0f
	case count == 0xde:
		count = int(r.Uint16("size of the map"))
	default:
		r.Fail("a map begins with %#x", count)
	}
	if count > maxFields {
		r.Fail("a map has %d fields, %d at most", count, maxFields)
	}
	numbers := map[string]uint64{}
	for i := 0; i < count && r.Err() == nil; i++ {
		key, _, isText := scalar(r, maxKey)
		if !isText {
			r.Fail("a field has no name")
		}
		_, number, _ := scalar(r, maxMeta)
		if _, twice := numbers[strings.ToLower(key)]; twice {
			r.Fail("a field occurs twice")
		}
		numbers[strings.ToLower(key)] = number
		if r.Left() < end {
			r.Fail("a map has more than %d bytes", most)
		}
	}
	return numbers
}

// scalar reads a value of MessagePack that has no others in it: text or bytes of at most most, or a number. A negative
// one is above every bound.
func scalar(r *foreign.Reader, most int) (text string, number uint64, isText bool) {
	lead := r.Byte("value")
	length := -1
	switch {
	case lead < 0x80:
		return "", uint64(lead), false
	case lead >= 0xe0:
		return "", 1 << 63, false
	case lead&0xe0 == 0xa0:
		length = int(lead & 0x1f)
	case lead == 0xc0 || lead == 0xc2 || lead == 0xc3: // nil, false, true
		return "", uint64(lead & 1), false
	case lead == 0xcc || lead == 0xd0:
		number = uint64(r.Byte("number"))
	case lead == 0xcd || lead == 0xd1:
		number = uint64(r.Uint16("number"))
	case lead == 0xce || lead == 0xd2:
		number = uint64(r.Uint32("number"))
	case lead == 0xcf || lead == 0xd3:
		number = r.Uint64("number")
	case lead == 0xc4 || lead == 0xd9:
		length = int(r.Byte("length"))
	case lead == 0xc5 || lead == 0xda:
		length = int(r.Uint16("length"))
	case lead == 0xc6 || lead == 0xdb:
		length = int(r.Uint32("length"))
	default:
		r.Fail("a value begins with %#x", lead)
	}
	if length < 0 {
		return "", number, false
	}
	return string(r.Bytes("value", length, most)), 0, true
}

package proxies

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/identity"
)

// ledgerLine is one line of the ledger's file: the CRC-32 of the rest as 8 hexadecimal digits, a space, JSON. The first line
// of a file that was written as a whole has no serial: it is about the ledger itself.
type ledgerLine struct {
	Number uint64 `json:"n"` // of the entry; of the next one in a first line

	Serial    string         `json:"serial,omitempty"`
	Kind      mesh.ProxyKind `json:"kind,omitempty"`
	Namespace string         `json:"namespace,omitempty"`
	Instance  string         `json:"instance,omitempty"`
	Account   string         `json:"account,omitempty"`
	NotAfter  int64          `json:"notAfter,omitempty"` // seconds since 1970

	Unknown int64  `json:"unknownUntil,omitempty"` // leaves.unknown, seconds since 1970
	Aside   string `json:"aside,omitempty"`        // leaves.aside
}

func lineOf(e Leaf) ledgerLine {
	return ledgerLine{
		Number: e.Number, Serial: e.Serial, Kind: e.Kind, Namespace: e.Namespace, Instance: e.Instance, Account: e.Account,
		NotAfter: e.NotAfter.Unix(),
	}
}

func (e ledgerLine) leaf() Leaf {
	return Leaf{Number: e.Number, Issued: identity.Issued{
		Serial: e.Serial, NotAfter: time.Unix(e.NotAfter, 0),
		Record: identity.Record{ProxyID: mesh.ProxyID{Kind: e.Kind, Namespace: e.Namespace, Instance: e.Instance}, Account: e.Account},
	}}
}

// text is the line with its end.
func (e ledgerLine) text() []byte {
	body, err := json.Marshal(e)
	if err != nil {
		panic("a line of the ledger cannot be encoded: " + err.Error()) // strings and numbers only
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(body), body)
}

// parseEntry reads a line without its end; false for one that is damaged.
func parseLine(line []byte) (e ledgerLine, ok bool) {
	sum, body, found := bytes.Cut(line, []byte(" "))
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if !found || err != nil || crc32.ChecksumIEEE(body) != uint32(want) || json.Unmarshal(body, &e) != nil {
		return ledgerLine{}, false
	}
	return e, e.Serial == "" || e.leaf().Validate() == nil
}

// readLeaves reads a file of entries. lines is how many it has, damaged how many bytes of it cannot be read. A last line
// without an end is neither: the process died while it wrote, before what it was about was given away. The numbers go on
// above any that the damaged bytes could have had.
func readLeaves(text []byte, now time.Time) (l leaves, lines, damaged int) {
	l.next = 1
	for len(text) > 0 {
		line, rest, ended := bytes.Cut(text, []byte("\n"))
		text = rest
		if !ended {
			l.next++ // it may have been whole but for its end
			break
		}
		lines++
		e, ok := parseLine(line)
		switch {
		case !ok:
			damaged += len(line) + 1
		case e.Serial == "":
			if l.aside = e.Aside; l.aside != "" {
				l.unknown = time.Unix(e.Unknown, 0)
			}
			l.next = max(l.next, e.Number)
		default:
			l.next = max(l.next, e.Number+1)
			if leaf := e.leaf(); !now.After(leaf.NotAfter) {
				if more, err := l.add(leaf, now); err == nil { // else it is beyond the bounds, where no ledger of ours was
					l = more
				}
			}
		}
	}
	l.next += uint64(damaged)
	return l, lines, damaged
}

// text is the whole ledger as a file.
func (l leaves) text() []byte {
	head := ledgerLine{Number: l.next, Aside: l.aside}
	if l.aside != "" {
		head.Unknown = l.unknown.Unix()
	}
	out := head.text()
	for _, of := range l.of.All() {
		for _, e := range *of {
			out = append(out, lineOf(e).text()...)
		}
	}
	return out
}

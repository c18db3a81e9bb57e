package agent

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"slices"
)

// keyMarks are by what a private key in PEM is known, as it is and in base64.
var keyMarks = marksOf("PRIVATE KEY")

// longestMark is the length of the longest of keyMarks, in bytes.
var longestMark = len(slices.MaxFunc(keyMarks, func(a, b []byte) int { return len(a) - len(b) }))

// marksOf gives word and what base64 always has of it, wherever it stands in what is encoded: three bytes are four
// characters, so it may begin at one of three places in such a group. The characters that it shares with what stands
// before and after it are left out.
func marksOf(word string) [][]byte {
	marks := [][]byte{[]byte(word)}
	for before := range 3 {
		text := base64.RawStdEncoding.EncodeToString(append(make([]byte, before), word...))
		first, end := (before*8+5)/6, (before+len(word))*8/6
		marks = append(marks, []byte(text[first:end]))
	}
	return marks
}

// errKey is what becomes of an answer that has a private key. Envoy leaves them out itself; should it ever not do so, for a
// field that is new, the key goes nowhere all the same.
var errKey = errors.New("envoy's answer has a private key in it, which stays here; please report it")

// keyless hands on what is written to it, until there is a private key in it.
type keyless struct {
	to   io.Writer
	tail []byte // the end of what was written, in which a mark may have begun
}

func (k *keyless) Write(p []byte) (int, error) {
	seen := slices.Concat(k.tail, p)
	for _, mark := range keyMarks {
		if bytes.Contains(seen, mark) {
			return 0, errKey
		}
	}
	k.tail = bytes.Clone(seen[max(0, len(seen)-longestMark+1):])
	return k.to.Write(p)
}

package document_test

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/internal/golden"
)

// Two documents of one federation as an earlier run of this program signed them.
const (
	storedFirst  = "testdata/first.document"
	storedSecond = "testdata/second.document"
)

// TestStored: documents on members' disks stay readable, whatever later versions of this program add. With -update it
// signs new ones, which is right only while no release has signed any.
func TestStored(t *testing.T) {
	if golden.Updating() {
		key := newKey(t)
		first := found(t, key)
		second, err := document.Admit(first, key, member("west"), now)
		must(t, err)
		for path, s := range map[string]*document.Sealed{storedFirst: first, storedSecond: second} {
			data, err := proto.Marshal(s.Wire())
			must(t, err)
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			must(t, os.WriteFile(path, data, 0o644))
		}
	}
	first, second := stored(t)
	got, err := document.Next(first, second)
	must(t, err)
	if m, ok := got.Member("west"); !ok || m.Incarnation != 2 || got.Federation != "fed.test" || got.Authority().Name != "east" {
		t.Errorf("read back %+v", got.Document)
	}
}

// stored reads the two documents.
func stored(t testing.TB) (*document.Sealed, *pb.Signed) {
	t.Helper()
	var wires []*pb.Signed
	for _, path := range []string{storedFirst, storedSecond} {
		data, err := os.ReadFile(path)
		must(t, err)
		wire, err := document.Unmarshal(data)
		must(t, err)
		wires = append(wires, wire)
	}
	first, err := document.Stored(wires[0])
	must(t, err)
	return first, wires[1]
}

package roster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	pb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/federation/roster"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

// chain makes a federation of east and as many further members as wanted.
func chain(t testing.TB, further int) (document.Key, []*document.Sealed) {
	t.Helper()
	signer, err := ca.NewKey()
	must(t, err)
	issuer, err := ca.NewRoot("fed.test", signer, time.Now())
	must(t, err)
	root, err := document.NewRoot(issuer.Certificate, pb.Root_ACTIVE)
	must(t, err)
	key := document.Key{Root: root, Signer: signer}
	first, err := document.Found("fed.test", key, member("east"), time.Now())
	must(t, err)
	out := []*document.Sealed{first}
	for i := range further {
		next, err := document.Admit(out[i], key, member(mesh.ClusterName(fmt.Sprintf("c%d", i))), time.Now())
		must(t, err)
		out = append(out, next)
	}
	return key, out
}

func member(name mesh.ClusterName) document.Member {
	return document.Member{Member: mesh.Member{Name: name, Gateways: []mesh.Gateway{{Address: netip.MustParseAddrPort("192.0.2.1:15443")}}}}
}

func open(t testing.TB, dir string) *roster.Roster {
	t.Helper()
	r, err := roster.Open(dir, nil)
	must(t, err)
	return r
}

func TestAppend(t *testing.T) {
	key, docs := chain(t, 3)
	fork, err := document.Admit(docs[1], key, member("fork"), time.Now())
	must(t, err)
	dir := filepath.Join(t.TempDir(), "federation")
	r := open(t, dir)
	if r.Current() != nil || r.ChainAfter(document.Version{}, 1<<20) != nil {
		t.Fatal("a new roster is not empty")
	}
	if err := r.Append(docs[0].Wire()); err == nil {
		t.Error("a document was appended to nothing: who verified it?")
	}
	must(t, r.Start(docs[:2]))
	if err := r.Start(docs); !errors.Is(err, roster.ErrMember) {
		t.Errorf("second start: %v, want ErrMember", err)
	}
	steps := []struct {
		why  string
		wire *pb.Signed
		want error // nil: accepted
		seq  uint64
	}{
		{"one is missing between", docs[3].Wire(), document.ErrGap, 2},
		{"held already", docs[1].Wire(), nil, 2},
		{"older, held", docs[0].Wire(), nil, 2},
		{"the next", docs[2].Wire(), nil, 3},
		{"a second truth", fork.Wire(), new(document.Alarm), 3},
		{"the next again", docs[2].Wire(), nil, 3},
		{"after it", docs[3].Wire(), nil, 4},
	}
	for _, step := range steps {
		err := r.Append(step.wire)
		alarm := new(*document.Alarm)
		_, wantAlarm := step.want.(*document.Alarm)
		if wantAlarm != errors.As(err, alarm) || !wantAlarm && !errors.Is(err, step.want) {
			t.Errorf("%s: error %v, want %v", step.why, err, step.want)
		}
		if got := r.Current().Version.Seq; got != step.seq {
			t.Fatalf("%s: present document %d, want %d", step.why, got, step.seq)
		}
	}
	again := open(t, dir)
	if again.Current().Hash != docs[3].Hash {
		t.Errorf("after a restart document %s, want %s", again.Current().Version, docs[3].Version)
	}
	if got := again.ChainAfter(docs[1].Version, 1<<20); len(got) != 2 || !bytes.Equal(got[0].Payload, docs[2].Wire().Payload) {
		t.Errorf("a peer at 2 gets %d documents, want 3 and 4", len(got))
	}
	for _, peer := range []struct {
		why   string
		hash  [32]byte
		first *document.Sealed
	}{
		{"a peer that holds the same", docs[1].Hash, docs[2]},
		{"a peer that does not tell", [32]byte{}, docs[2]},
		{"a peer that holds another is shown the one held here", fork.Hash, docs[1]},
	} {
		if got := again.Since(docs[1].Version, peer.hash, 1<<20); !bytes.Equal(got[0].Payload, peer.first.Wire().Payload) {
			t.Errorf("%s: the chain does not begin with document %s", peer.why, peer.first.Version)
		}
	}
	if got := again.ChainAfter(document.Version{}, 1); len(got) != 1 {
		t.Errorf("%d documents in one byte, want the one that is always sent", len(got))
	}
	must(t, again.Forget())
	if again.Current() != nil || open(t, dir).Current() != nil {
		t.Error("a forgotten federation is still there")
	}
}

// TestDamage proves that a damaged chain is never silently taken as shorter.
func TestDamage(t *testing.T) {
	_, docs := chain(t, 2)
	tests := []struct {
		why   string
		spoil func(t *testing.T, files []string)
		file  int // the one that is named
	}{
		{"an empty file", func(t *testing.T, f []string) { must(t, os.WriteFile(f[1], nil, 0o600)) }, 1},
		{"a changed byte", func(t *testing.T, f []string) { flip(t, f[2], "c1") }, 2},
		{"a changed byte in the oldest", func(t *testing.T, f []string) { flip(t, f[0], "east") }, 0},
		{"a missing file between", func(t *testing.T, f []string) { must(t, os.Remove(f[1])) }, 2},
		{"a file under another's name", func(t *testing.T, f []string) {
			must(t, os.Rename(f[2], strings.Replace(f[2], "3.document", "4.document", 1)))
		}, -1},
		{"cut short", func(t *testing.T, f []string) { must(t, os.Truncate(f[2], 100)) }, 2},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "federation")
			must(t, open(t, dir).Start(docs))
			files, err := filepath.Glob(dir + "/documents/*.document")
			must(t, err)
			test.spoil(t, files)
			_, err = roster.Open(dir, nil)
			if err == nil || hint.Of(err) == "" || test.file >= 0 && !strings.Contains(err.Error(), files[test.file]) {
				t.Errorf("error %v, want one with a hint that names the file", err)
			}
		})
	}
}

func TestWatch(t *testing.T) {
	_, docs := chain(t, 3)
	dir := filepath.Join(t.TempDir(), "federation")
	synctest.Test(t, func(t *testing.T) {
		r := open(t, dir)
		must(t, r.Start(docs[:1]))
		ctx, cancel := context.WithCancel(t.Context())
		w := r.Watch(ctx)
		for _, d := range docs[1:] {
			must(t, r.Append(d.Wire()))
		}
		<-w
		select {
		case <-w:
			t.Error("three changes made two wake-ups")
		default:
		}
		must(t, r.Append(docs[3].Wire()))
		select {
		case <-w:
			t.Error("a document held already is no change")
		default:
		}
		cancel()
		synctest.Wait()
		if _, ok := <-w; ok {
			t.Error("the channel outlives its context")
		}
	})
}

// TestTrust: the anchor is the same after a restart, and another once the members change.
func TestTrust(t *testing.T) {
	_, docs := chain(t, 1)
	dir := filepath.Join(t.TempDir(), "federation")
	r := open(t, dir)
	if tr, err := r.Trust("east"); tr != nil || err != nil {
		t.Errorf("alone: %v, %v; want none", tr, err)
	}
	must(t, r.Start(docs[:1]))
	first, err := r.Trust("east")
	must(t, err)
	again, err := open(t, dir).Trust("east")
	must(t, err)
	if !bytes.Equal(first.AnchorPEM, again.AnchorPEM) {
		t.Error("a restart made another anchor")
	}
	must(t, r.Append(docs[1].Wire()))
	second, err := r.Trust("east")
	must(t, err)
	if bytes.Equal(first.AnchorPEM, second.AnchorPEM) || !anchor.Fits(second.AnchorPEM, docs[1].Trusted(), docs[1].Hosts(), time.Now()) {
		t.Error("the anchor does not fit the new members")
	}
	if m, ok := second.Member("c0"); !ok || m.Incarnation != 2 || second.Seq != 2 {
		t.Errorf("member c0 %+v of document %d", m, second.Seq)
	}
}

func flip(t *testing.T, file, at string) {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	i := bytes.Index(data, []byte(at))
	data[i] ^= 1
	must(t, os.WriteFile(file, data, 0o600))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

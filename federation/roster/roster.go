// Package roster owns the chain of federation documents on disk: what this cluster knows of who is in the federation.
//
// A document is verified before it is written and written before it is published, so what others see survives a crash.
// Reading is an atomic pointer; appending is serialised.
package roster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/internal/bell"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/store"
)

const (
	// folder inside the federation folder, and the suffix of one document in it. The name is the version, so that names
	// sort as versions do.
	folder, suffix = "documents", ".document"
	anchorFile     = "anchor.pem"
	// keep is how many documents stay: what a member may sleep through and still catch up from this one. A thousand
	// changes of membership are years; a document of 1,000 members is about 120 kB.
	keep = 1000
	// compactAt leaves room, so that not every append deletes a file.
	compactAt = keep + keep/4
)

// Roster is the owner of the chain. Its methods may be called from several goroutines.
type Roster struct {
	dir, docs *store.Dir
	now       func() time.Time
	// chain is immutable once published; the last document is the present one. Nil while the cluster is in no
	// federation.
	chain atomic.Pointer[[]*document.Sealed]

	mu      sync.Mutex // serialises writers
	changed bell.Bell  // rung after each change of chain
}

// Open opens the chain below dir (which is made if it is missing) and checks all of it: a damaged file is an error that
// names it. The clock nil means time.Now.
func Open(dir string, now func() time.Time) (*Roster, error) {
	if now == nil {
		now = time.Now
	}
	top, err := store.Open(dir)
	if err != nil {
		return nil, err
	}
	docs, err := top.Sub(folder)
	if err != nil {
		return nil, err
	}
	r := &Roster{dir: top, docs: docs, now: now}
	chain, err := r.load()
	if err != nil {
		return nil, err
	}
	if len(chain) > 0 {
		r.chain.Store(&chain)
	}
	return r, nil
}

// load reads and verifies every document of the folder.
func (r *Roster) load() ([]*document.Sealed, error) {
	names, err := r.docs.List()
	if err != nil {
		return nil, err
	}
	var chain []*document.Sealed
	for _, name := range names {
		if !strings.HasSuffix(name, suffix) {
			continue
		}
		data, err := r.docs.Read(name)
		if err != nil {
			return nil, err
		}
		s, err := check(chain, data)
		if err == nil && fileName(s.Version) != name {
			err = fmt.Errorf("it holds document %s", s.Version)
		}
		if err != nil {
			err = fmt.Errorf("federation document in %s is damaged: %w", r.docs.Path(name), err)
			return nil, hint.Wrap(err,
				"restore the file from a backup of this cluster's data; or, with the whole data folder moved away, join again with a new token")
		}
		chain = append(chain, s)
	}
	return chain, nil
}

func check(chain []*document.Sealed, data []byte) (*document.Sealed, error) {
	wire, err := document.Unmarshal(data)
	if err != nil {
		return nil, err
	}
	if len(chain) == 0 {
		return document.Stored(wire)
	}
	return document.Next(chain[len(chain)-1], wire)
}

func fileName(v document.Version) string { return fmt.Sprintf("%020d-%020d%s", v.Term, v.Seq, suffix) }

// Current is the present document, nil while the cluster is in no federation.
func (r *Roster) Current() *document.Sealed {
	if chain := r.chain.Load(); chain != nil {
		return (*chain)[len(*chain)-1]
	}
	return nil
}

// ErrMember is a second membership.
var ErrMember = errors.New("this cluster is in a federation already")

// Start takes over a chain the caller has verified (document.Found or document.Chain); the roster has to be empty.
func (r *Roster) Start(chain []*document.Sealed) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cur := r.Current(); cur != nil {
		return fmt.Errorf("federation %q: %w", cur.Federation, ErrMember)
	}
	if len(chain) == 0 {
		return errors.New("start federation documents: the chain is empty")
	}
	// Newest first: after a crash in between, what is on disk still is a chain that ends with the present document.
	for _, s := range slices.Backward(chain) {
		if err := r.write(s); err != nil {
			return err
		}
	}
	r.publish(slices.Clone(chain))
	return nil
}

// Append adds one document. It is idempotent: a document held already is no error. One that does not follow is
// document.ErrGap, a second truth about a version held *document.Alarm.
func (r *Roster) Append(wire *pb.Signed) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := r.chain.Load()
	if held == nil {
		return errors.New("append federation document: this cluster is in no federation")
	}
	chain := *held
	last := chain[len(chain)-1]
	v, err := document.VersionOf(wire)
	if err != nil {
		return err
	}
	if v.Compare(last.Version) <= 0 {
		return older(chain, v, wire)
	}
	s, err := document.Next(last, wire)
	if err != nil {
		return err
	}
	if err := r.write(s); err != nil {
		return err
	}
	r.publish(r.compact(append(slices.Clip(chain), s)))
	return nil
}

// older judges a document of a version at or below the present one.
func older(chain []*document.Sealed, v document.Version, wire *pb.Signed) error {
	i, found := slices.BinarySearchFunc(chain, v, func(s *document.Sealed, v document.Version) int { return s.Version.Compare(v) })
	if !found {
		if i == 0 {
			return nil // from before what is kept: nothing to compare it with
		}
		return fmt.Errorf("federation document %s is not in the chain that leads to %s", v, chain[len(chain)-1].Version)
	}
	var prev *document.Sealed
	if i > 0 {
		prev = chain[i-1]
	}
	return document.Conflict(chain[i], prev, wire)
}

func (r *Roster) write(s *document.Sealed) error {
	data, err := proto.Marshal(s.Wire())
	if err != nil {
		return fmt.Errorf("store federation document %s: %w", s.Version, err)
	}
	return r.docs.Write(fileName(s.Version), data)
}

// compact drops the oldest documents once there are compactAt. What cannot be deleted now is found by the next start
// and deleted later.
func (r *Roster) compact(chain []*document.Sealed) []*document.Sealed {
	if len(chain) < compactAt {
		return chain
	}
	// Oldest first, and stop at the first failure: a hole in the files would read as damage.
	drop := len(chain) - keep
	for i := range drop {
		if err := r.docs.Remove(fileName(chain[i].Version)); err != nil {
			return slices.Clone(chain[i:])
		}
	}
	return slices.Clone(chain[drop:])
}

// publish makes chain the present one and wakes the watchers. Callers hold r.mu.
func (r *Roster) publish(chain []*document.Sealed) {
	r.chain.Store(&chain)
	r.changed.Ring()
}

// ChainAfter gives the documents after version v, oldest first, at most max bytes of them and at least one: what a peer
// that lags needs. If v is from before what is kept, it begins with the oldest document there is.
func (r *Roster) ChainAfter(v document.Version, max int) []*pb.Signed {
	chain := r.chain.Load()
	if chain == nil {
		return nil
	}
	var out []*pb.Signed
	size := 0
	for _, s := range *chain {
		if s.Version.Compare(v) <= 0 {
			continue
		}
		if size += proto.Size(s.Wire()); size > max && len(out) > 0 {
			break
		}
		out = append(out, s.Wire())
	}
	return out
}

// Since is ChainAfter for a peer that tells the hash of the document it holds of version v, zero if it does not. Where
// the one held here is another, the chain begins with it: the peer has to learn that there are two.
func (r *Roster) Since(v document.Version, hash [32]byte, max int) []*pb.Signed {
	after := r.ChainAfter(v, max)
	chain := r.chain.Load()
	if chain == nil || hash == [32]byte{} {
		return after
	}
	for _, s := range *chain {
		if s.Version == v && s.Hash != hash {
			return append([]*pb.Signed{s.Wire()}, after...)
		}
	}
	return after
}

// Tail gives the newest documents, oldest first, as many as fit into max bytes and at least the present one: what a
// joiner starts from.
func (r *Roster) Tail(max int) []*pb.Signed {
	chain := r.chain.Load()
	if chain == nil {
		return nil
	}
	size, from := 0, len(*chain)
	for from > 0 {
		if size += proto.Size((*chain)[from-1].Wire()); size > max && from < len(*chain) {
			break
		}
		from--
	}
	var out []*pb.Signed
	for _, s := range (*chain)[from:] {
		out = append(out, s.Wire())
	}
	return out
}

// Watch returns a channel that gets a value at the start and after each change, several changes making one. It is closed
// when ctx is done.
func (r *Roster) Watch(ctx context.Context) <-chan struct{} { return r.changed.Watch(ctx) }

// Trust gives the present document as the snapshot has it, with local anchors. They are kept on disk while they fit, so
// that a restart of the control plane gives no proxy a new secret. Nil while the cluster is in no federation.
func (r *Roster) Trust(self mesh.ClusterName) (*mesh.Trust, error) {
	d := r.Current()
	if d == nil {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	kept, err := r.dir.Read(anchorFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil && anchor.Fits(kept, d.Trusted(), d.Hosts(), r.now()) {
		return d.Trust(self, kept), nil
	}
	made, err := anchor.Make(d.Trusted(), d.Hosts(), r.now())
	if err != nil {
		return nil, fmt.Errorf("federation document %s: %w", d.Version, err)
	}
	if err := r.dir.Write(anchorFile, made); err != nil {
		return nil, err
	}
	return d.Trust(self, made), nil
}

// Forget removes every document, newest first: the cluster is in no federation afterwards.
func (r *Roster) Forget() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	chain := r.chain.Load()
	if chain == nil {
		return nil
	}
	for _, s := range slices.Backward(*chain) {
		if err := r.docs.Remove(fileName(s.Version)); err != nil {
			return err
		}
	}
	if err := r.dir.Remove(anchorFile); err != nil {
		return err
	}
	r.chain.Store(nil)
	r.changed.Ring()
	return nil
}

package proxies

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/trust/identity"
)

const (
	ledgerFile = "leaves"
	// maxLedger bounds what is read of the file, in bytes: some 250 a line, with room for as many outdated lines.
	maxLedger = 128 << 20
	// slack is how many outdated lines the file may have beside as many as there are leaves, before it is written anew.
	slack = 256
	// maxBatch bounds how many entries one write has.
	maxBatch = 256
)

// Ledger is the record of issued certificates, on disk before the certificate is given away. It is a file of lines that
// are appended and synchronised, many that come at once together, and written anew when most of it is outdated. Use
// OpenLedger.
//
// It stands here and not in trust/identity, which only says what is to be kept: who is connected, whom the mesh waits
// for and what was issued are facts about proxies that belong together, and trust imports nothing of this side.
type Ledger struct {
	path string
	now  func() time.Time
	log  *slog.Logger

	present  atomic.Pointer[leaves] // written by Run
	failure  atomic.Pointer[error]  // of the latest write; nil in it: none
	requests chan keep
	stopped  chan struct{} // closed when Run ends

	// Owned by Run.
	file  *os.File // open for appending; nil: the next write is of the whole file
	lines int      // of the file
}

// keep asks Run to write an entry.
type keep struct {
	issued identity.Issued
	done   chan error // of capacity 1
}

// OpenLedger reads the ledger in folder dir, which is made if it is missing. A damaged one is set aside under a name of
// its own and what can be read of it goes on. now nil means time.Now.
func OpenLedger(dir string, log *slog.Logger, now func() time.Time) (*Ledger, error) {
	if now == nil {
		now = time.Now
	}
	l := &Ledger{path: filepath.Join(dir, ledgerFile), now: now, log: log, requests: make(chan keep), stopped: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the ledger of issued certificates: %w", err)
	}
	text, err := readBounded(l.path)
	if err != nil {
		return nil, fmt.Errorf("read the ledger of issued certificates: %w", err)
	}
	read, lines, damaged := readLeaves(text, now())
	if len(text) == maxLedger {
		damaged++ // there is more
	}
	l.lines = lines
	l.present.Store(&read)
	if damaged == 0 {
		return l, nil
	}
	if read.aside, err = setAside(l.path); err != nil {
		return nil, fmt.Errorf("set the damaged ledger %s aside: %w", l.path, err)
	}
	read.unknown = now().Add(ca.WorkloadLeafLife)
	l.log.Error("the ledger of issued certificates was damaged: what it has lost may be in use for a while yet",
		"file", read.aside, "bytes", damaged, "kept", read.size, "until", read.unknown.UTC().Format(time.RFC3339))
	if err := l.rewrite(&read); err != nil {
		return nil, fmt.Errorf("write the ledger anew that was damaged (it is at %s): %w", read.aside, err)
	}
	l.present.Store(&read)
	return l, nil
}

// readBounded reads a file; a missing one is empty.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxLedger))
}

// setAside gives a file a second name, which says that it is damaged. The first one stays until the file is replaced, so
// that there is a ledger at every moment.
func setAside(path string) (string, error) {
	for n := 1; ; n++ {
		aside := fmt.Sprintf("%s.damaged-%d", path, n)
		if err := os.Link(path, aside); !errors.Is(err, fs.ErrExist) {
			return aside, err
		}
	}
}

// Run writes what Keep asks for until ctx ends; its error is then nil.
func (l *Ledger) Run(ctx context.Context) error {
	defer close(l.stopped)
	defer func() {
		if l.file != nil {
			l.file.Close()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case first := <-l.requests:
			batch := []keep{first}
			for more := true; more && len(batch) < maxBatch; {
				select {
				case k := <-l.requests:
					batch = append(batch, k)
				default:
					more = false
				}
			}
			l.take(batch)
		}
	}
}

// Keep returns when an entry is on disk, or with the reason why it is not: the certificate is then not to be used.
func (l *Ledger) Keep(ctx context.Context, e identity.Issued) error {
	k := keep{issued: e, done: make(chan error, 1)}
	select {
	case l.requests <- k:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.stopped:
		return status.Error(codes.Unavailable, "the control plane is stopping")
	}
	select {
	case err := <-k.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// take writes a batch in one step and answers each.
func (l *Ledger) take(batch []keep) {
	next, now := *l.present.Load(), l.now()
	var lines []byte
	written := batch[:0]
	for _, k := range batch {
		leaf := Leaf{Number: next.next, Issued: k.issued}
		more, err := next.add(leaf, now)
		if err != nil {
			k.done <- status.Error(codes.ResourceExhausted, err.Error())
			continue
		}
		next, written = more, append(written, k)
		lines = append(lines, lineOf(leaf).text()...)
	}
	if len(written) == 0 {
		return
	}
	err := l.write(&next, lines, len(written))
	l.failure.Store(&err)
	if err != nil {
		l.log.Error("no certificates are issued: the ledger cannot be written", "err", err)
	} else {
		l.present.Store(&next)
	}
	for _, k := range written {
		k.done <- askAgain(err)
	}
}

// askAgain gives an error the kind that lets a proxy ask again: the disk may be emptied.
func askAgain(err error) error {
	if err == nil {
		return nil
	}
	return hint.Wrap(hint.Code(status.Error(codes.Unavailable, err.Error()), hint.CodeOf(err)), hint.Of(err))
}

// write appends lines, or writes the whole ledger when it cannot be appended to: at first, after a failure, which may
// have left a part of a line, and when most of it is outdated.
func (l *Ledger) write(next *leaves, lines []byte, n int) error {
	if l.file == nil || l.lines+n > 2*next.size+slack {
		return l.rewrite(next)
	}
	_, err := l.file.Write(lines)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		l.file.Close()
		l.file = nil
		return l.explain(err)
	}
	l.lines += n
	return nil
}

// rewrite replaces the file: after a crash it is the old one or the new one, whole.
func (l *Ledger) rewrite(next *leaves) (err error) {
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	f, err := os.OpenFile(l.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return l.explain(err)
	}
	defer func() {
		if err != nil {
			err = l.explain(err)
			f.Close()
			os.Remove(l.path + ".new")
		}
	}()
	*next = next.prune(l.now())
	if _, err := f.Write(next.text()); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(l.path+".new", l.path); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(l.path))
	if err != nil {
		return err
	}
	defer folder.Close()
	if err := folder.Sync(); err != nil {
		return err
	}
	l.file, l.lines = f, next.size+1
	return nil
}

// explain says what a failed write means.
func (l *Ledger) explain(err error) error {
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	err = fmt.Errorf("write the ledger of issued certificates: %w; what cannot be recorded is not issued", err)
	if full {
		return hint.Wrapf(hint.Code(err, "disk_full"), "free some space on the disk of %s; proxies then go on by themselves", filepath.Dir(l.path))
	}
	return hint.Wrapf(hint.Code(err, "ledger_not_writable"), "look at the disk of %s, and at who may write there", filepath.Dir(l.path))
}

// Leaves are the certificates that may be in use, the next to expire first: whom a rotation of the root has to wait for.
func (l *Ledger) Leaves() []Leaf { return l.present.Load().list(l.now()) }

// End is when the last certificate of a proxy ends, or ended; zero if none is known.
func (l *Ledger) End(id mesh.ProxyID) time.Time { return l.present.Load().end(id) }

// Standing says what is wrong with the ledger: the error of the latest write, or else where a damaged file is and until
// when certificates may be in use that only it knew of; nothing is zero.
func (l *Ledger) Standing() (aside string, until time.Time, failure error) {
	if err := l.failure.Load(); err != nil && *err != nil {
		return "", time.Time{}, *err
	}
	if now := l.present.Load(); l.now().Before(now.unknown) {
		return now.aside, now.unknown, nil
	}
	return "", time.Time{}, nil
}

package proxies

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/internal/hint"
)

// ends is when the certificates of these tests end.
var ends = time.Now().Add(time.Hour).Unix()

// opened opens the ledger of a folder and runs it until the returned function is called.
func openedLedger(t testing.TB, dir string) (*Ledger, func()) {
	t.Helper()
	l, err := OpenLedger(dir, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop := sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return l, stop
}

// TestLedgerSurvives: what was kept is there after a restart, in one file that does not grow for ever.
func TestLedgerSurvives(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "proxies")
	l, stop := openedLedger(t, dir)
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			if err := l.Keep(t.Context(), issued(fmt.Sprint("w-", i), ends)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	stop()
	if err := l.Keep(t.Context(), issued("late", ends)); status.Code(err) != codes.Unavailable {
		t.Errorf("after its end: %v", err)
	}
	l, stop = openedLedger(t, dir)
	numbers := map[uint64]bool{}
	for _, e := range l.Leaves() {
		numbers[e.Number] = true
	}
	if len(l.Leaves()) != 50 || len(numbers) != 50 {
		t.Errorf("%d certificates with %d numbers, want 50", len(l.Leaves()), len(numbers))
	}
	if id := issued("w-7", ends).ProxyID; l.End(id).Unix() != ends || !l.End(issued("other", 0).ProxyID).IsZero() {
		t.Errorf("ends at %v", l.End(id))
	}
	for i := range 3 * slack {
		if err := l.Keep(t.Context(), issued("busy", ends+int64(i))); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	text, err := os.ReadFile(filepath.Join(dir, ledgerFile))
	if lines := strings.Count(string(text), "\n"); err != nil || lines > 2*(50+maxPerProxy)+slack {
		t.Errorf("%d lines for %d certificates, %v", lines, 50+maxPerProxy, err)
	}
	l, _ = openedLedger(t, dir)
	if got := l.Leaves(); len(got) != 50+maxPerProxy || got[len(got)-1].Number != 50+3*slack {
		t.Errorf("%d certificates, the last is number %d; want %d, %d", len(got), got[len(got)-1].Number, 50+maxPerProxy, 50+3*slack)
	}
}

// killedEnv makes the test program a ledger that prints what it has kept until it is killed.
const killedEnv = "ISTHMUS_TEST_LEDGER"

// TestLedgerKilled: kill -9 at any moment loses nothing that was given away.
func TestLedgerKilled(t *testing.T) {
	if dir := os.Getenv(killedEnv); dir != "" {
		l, _ := openedLedger(t, dir)
		for i := 0; ; i++ {
			e := issued(fmt.Sprintf("w-%d-%d", os.Getpid(), i), ends)
			if err := l.Keep(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			fmt.Println("kept", e.Serial)
		}
	}
	dir := t.TempDir()
	given := map[string]bool{}
	for round := range 3 {
		child := exec.Command(os.Args[0], "-test.run=^TestLedgerKilled$")
		child.Env = append(os.Environ(), killedEnv+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if serial, ok := strings.CutPrefix(lines.Text(), "kept "); ok {
				given[serial] = true
			}
			if n == 20+7*round {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = child.Wait() // killed
	}
	l, _ := openedLedger(t, dir)
	have := map[string]bool{}
	for _, e := range l.Leaves() {
		have[e.Serial] = true
	}
	for serial := range given {
		if !have[serial] {
			t.Errorf("%s was given away and is not recorded", serial)
		}
	}
	if aside, _, _ := l.Standing(); aside != "" || len(given) < 60 {
		t.Errorf("%d given away; the file counts as damaged: %q", len(given), aside)
	}
}

// TestLedgerDamaged: a damaged file is named and set aside, what is whole of it goes on, and numbers do not come again.
func TestLedgerDamaged(t *testing.T) {
	dir := t.TempDir()
	l, stop := openedLedger(t, dir)
	for i := range 3 {
		if err := l.Keep(t.Context(), issued(fmt.Sprint("w-", i), ends)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	path := filepath.Join(dir, ledgerFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := []byte(strings.Replace(string(text), "w-1", "w-9", 1))
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it says so after a further restart, too
		l, stop = openedLedger(t, dir)
		aside, until, failure := l.Standing()
		if kept, err := os.ReadFile(aside); failure != nil || err != nil || string(kept) != string(bad) {
			t.Errorf("%v; set aside as %q: %v", failure, aside, err)
		}
		if left := time.Until(until); left < 11*time.Hour || left > 13*time.Hour {
			t.Errorf("what it lost may be in use for %v, want the life of a certificate", left)
		}
		if got := l.Leaves(); len(got) != 2 || got[0].Instance != "w-0" || got[1].Instance != "w-2" {
			t.Errorf("kept %v, want what is whole", got)
		}
		stop()
	}
	l, _ = openedLedger(t, dir)
	if err := l.Keep(t.Context(), issued("next", ends+1)); err != nil {
		t.Fatal(err)
	}
	if got := l.Leaves(); got[2].Number <= 3 {
		t.Errorf("number %d was given before", got[2].Number)
	}
}

// TestLedgerDiskFull: what cannot be recorded is not issued, and the error says why; afterwards it goes on by itself.
func TestLedgerDiskFull(t *testing.T) {
	dir := t.TempDir()
	l, stop := openedLedger(t, dir)
	if err := l.Keep(t.Context(), issued("first", ends)); err != nil {
		t.Fatal(err)
	}
	stop()
	l, _ = openedLedger(t, dir)
	// The first write after a start is of the whole file, here to a device that is always full.
	if err := os.Symlink("/dev/full", filepath.Join(dir, ledgerFile+".new")); err != nil {
		t.Fatal(err)
	}
	err := l.Keep(t.Context(), issued("refused", ends))
	if hint.CodeOf(err) != "disk_full" || hint.Of(err) == "" || status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "not issued") {
		t.Errorf("full disk: %v (code %q, hint %q)", err, hint.CodeOf(err), hint.Of(err))
	}
	if _, _, failure := l.Standing(); failure == nil || len(l.Leaves()) != 1 {
		t.Errorf("standing %v, %d certificates", failure, len(l.Leaves()))
	}
	if err := l.Keep(t.Context(), issued("second", ends+1)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	// An append that fails may leave a part of a line; what follows is written as a whole.
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.file.Close() // Run waits for the next request, so the test may touch what it owns
	l.file = full
	if err := l.Keep(t.Context(), issued("refused", ends)); hint.CodeOf(err) != "disk_full" {
		t.Errorf("full disk at an append: %v", err)
	}
	if err := l.Keep(t.Context(), issued("third", ends+2)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if _, _, failure := l.Standing(); failure != nil {
		t.Errorf("standing %v", failure)
	}
	again, _ := openedLedger(t, dir)
	var names []string
	for _, e := range again.Leaves() {
		names = append(names, e.Instance)
	}
	if got := strings.Join(names, " "); got != "first second third" {
		t.Errorf("after a restart %s, want first second third", got)
	}
}

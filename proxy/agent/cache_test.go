package agent

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"isthmus.dev/isthmus/xds"
)

func cached(t testing.TB) (xds.State, []byte) {
	t.Helper()
	var state xds.State
	for _, name := range []string{"b", "a", "c"} {
		r, err := xds.New(name, wrapperspb.String("content of "+name))
		if err != nil {
			t.Fatal(err)
		}
		state = state.Apply(r.Body.TypeUrl, []xds.Resource{r}, nil)
	}
	data, err := encodeCache(state)
	if err != nil {
		t.Fatal(err)
	}
	return state, data
}

func same(a, b xds.State) bool {
	for _, t := range append(a.Types(), b.Types()...) {
		if a.Version(t) != b.Version(t) {
			return false
		}
	}
	return true
}

func TestCache(t *testing.T) {
	state, data := cached(t)
	if got, err := decodeCache(data); err != nil || !same(got, state) {
		t.Errorf("read back: %v, same %v", err, same(got, state))
	}
	dir := t.TempDir()
	if _, ok, err := readCache(dir); ok || err != nil {
		t.Errorf("no cache: ok %v, %v", ok, err)
	}
	if err := writeCache(dir, state); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := readCache(dir); !ok || err != nil || !same(got, state) {
		t.Errorf("read back from disk: ok %v, %v", ok, err)
	}
	info, err := os.Stat(filepath.Join(dir, cacheFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestDamagedCacheIsIgnored(t *testing.T) {
	_, data := cached(t)
	flipped := bytes.Clone(data)
	flipped[len(flipped)-1] ^= 1
	for why, text := range map[string][]byte{
		"one bit":        flipped,
		"cut short":      data[:len(data)-1],
		"only the start": data[:len(cacheMagic)+3],
		"empty":          nil,
		"another format": append([]byte("isthmus-xds/9\n"), data[len(cacheMagic):]...),
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, cacheFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		a := &Agent{cfg: Config{StateDir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))}, identity: &identities{}}
		a.hub = newHub(a)
		a.hub.load()
		if a.hub.published.Load() != nil || !strings.Contains(log.String(), "last good configuration ignored") {
			t.Errorf("%s: published %v, log %s", why, a.hub.published.Load(), &log)
		}
	}
}

func FuzzDecodeCache(f *testing.F) {
	_, data := cached(f)
	f.Add(data)
	f.Add([]byte(cacheMagic))
	f.Add(append(data, make([]byte, 1<<20)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		state, err := decodeCache(data)
		if err != nil {
			return
		}
		again, err := encodeCache(state)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if back, err := decodeCache(again); err != nil || !same(back, state) {
			t.Errorf("written and read again: %v", err)
		}
	})
}

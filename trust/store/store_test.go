package store_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/trust/store"
)

func open(t *testing.T) (*store.Dir, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trust")
	d, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return d, path
}

// TestModes proves that what others could have read is refused, with an error that names the file and a way out.
func TestModes(t *testing.T) {
	tests := []struct {
		why    string
		spoil  func(t *testing.T, dir string)
		want   string
		wantFx string
	}{
		{"a file others may read", func(t *testing.T, dir string) { chmod(t, dir+"/root.key", 0o644) }, "root.key has mode 0644", "chmod 0600 "},
		{"a file the group may write", func(t *testing.T, dir string) { chmod(t, dir+"/root.key", 0o620) }, "root.key has mode 0620", "chmod 0600 "},
		{"a symbolic link, though its target is fine", func(t *testing.T, dir string) {
			must(t, os.Rename(dir+"/root.key", dir+"/elsewhere"))
			must(t, os.Symlink(dir+"/elsewhere", dir+"/root.key"))
		}, "root.key is a symbolic link", "chmod 0600"},
		{"a dangling symbolic link", func(t *testing.T, dir string) {
			must(t, os.Remove(dir+"/root.key"))
			must(t, os.Symlink(dir+"/nothing", dir+"/root.key"))
		}, "root.key is a symbolic link", "chmod 0600"},
		{"a folder instead of a file", func(t *testing.T, dir string) {
			must(t, os.Remove(dir+"/root.key"))
			must(t, os.Mkdir(dir+"/root.key", 0o700))
		}, "not a regular file", ""},
		{"a folder others may enter", func(t *testing.T, dir string) { chmod(t, dir, 0o711) }, "trust has mode 0711", "chmod 0700 "},
		{"a linked folder", func(t *testing.T, dir string) {
			must(t, os.Rename(dir, dir+"2"))
			must(t, os.Symlink(dir+"2", dir))
		}, "trust is a symbolic link", ""},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			d, path := open(t)
			must(t, d.Write("root.key", []byte("secret")))
			test.spoil(t, path)
			d, err := store.Open(path)
			if err == nil {
				_, err = d.Read("root.key")
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(hint.Of(err), test.wantFx) {
				t.Errorf("got error %v, hint %q\nwant error with %q, hint with %q", err, hint.Of(err), test.want, test.wantFx)
			}
		})
	}
}

func TestWrite(t *testing.T) {
	d, path := open(t)
	must(t, d.Write("a", []byte("one")))
	must(t, d.Write("a", []byte("two")))
	got, err := d.Read("a")
	if err != nil || string(got) != "two" {
		t.Fatalf("read back %q, %v; want two", got, err)
	}
	info, err := os.Lstat(path + "/a")
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	if _, err := d.Read("missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v, want fs.ErrNotExist", err)
	}
	for _, name := range []string{"", ".", "..", "../a", "a/b", ".hidden"} {
		if d.Write(name, nil) == nil {
			t.Errorf("name %q left the folder", name)
		}
	}
	// What a crash left behind is not state.
	must(t, os.WriteFile(path+"/.writing-123", []byte("half"), 0o600))
	d, err = store.Open(path)
	must(t, err)
	names, err := d.List()
	must(t, err)
	if len(names) != 1 || names[0] != "a" {
		t.Errorf("files %v, want [a]", names)
	}
	if _, err := os.Lstat(path + "/.writing-123"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half-written file is still there: %v", err)
	}
	must(t, d.Remove("a"))
	must(t, d.Remove("a"))
}

func TestKeys(t *testing.T) {
	d, _ := open(t)
	key, err := ca.NewKey()
	must(t, err)
	must(t, d.WriteKey("k", key))
	got, err := d.ReadKey("k")
	must(t, err)
	if !key.Equal(got) {
		t.Error("the key changed on its way through the disk")
	}
	data, err := d.Read("k")
	must(t, err)
	for _, bad := range [][]byte{nil, []byte("junk"), data[:len(data)/2], append(bytes.Clone(data), data...)} {
		must(t, d.Write("k", bad))
		if _, err := d.ReadKey("k"); err == nil || !strings.Contains(err.Error(), d.Path("k")) {
			t.Errorf("key file %q: error %v, want one that names the file", bad, err)
		}
		if _, err := d.ReadCertificates("k"); err == nil || !strings.Contains(err.Error(), d.Path("k")) {
			t.Errorf("certificate file %q: error %v, want one that names the file", bad, err)
		}
	}
}

func TestSeal(t *testing.T) {
	p := store.NewPassphrase()
	sealed, err := store.Seal([]byte("the root"), p)
	must(t, err)
	if bytes.Contains(sealed, []byte("the root")) {
		t.Fatal("not encrypted")
	}
	got, err := store.Unseal(sealed, p.Text)
	if err != nil || string(got) != "the root" {
		t.Errorf("opened %q, %v", got, err)
	}
	if _, err := store.Unseal(sealed, "wrong"); hint.Of(err) == "" {
		t.Errorf("wrong passphrase: error %v without a hint", err)
	}
	if _, err := store.Seal(nil, store.Passphrase{}); err == nil {
		t.Error("an empty passphrase was taken")
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) { t.Helper(); must(t, os.Chmod(path, mode)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The same input gives the same bytes, whatever order it came in and whatever times the files have.
func TestReproducible(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	write := func(at time.Time, order ...string) []byte {
		t.Helper()
		if err := errors.Join(os.WriteFile(file, []byte("#!/bin/sh\n"), 0o755), os.Chtimes(file, at, at)); err != nil {
			t.Fatal(err)
		}
		tree := NewTree()
		for _, name := range order {
			if err := tree.AddFile(name, file, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		if err := (Image{Name: "example.org/a:1", Entrypoint: []string{"/a"}, Files: tree}).Write(&out); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	first, second := write(time.Unix(1, 0), "a", "b/c"), write(time.Unix(1e9, 0), "b/c", "a")
	if !bytes.Equal(first, second) {
		t.Errorf("two images of the same files differ: %d and %d bytes", len(first), len(second))
	}
}

// A recipe gives the same bytes wherever it works.
func TestRecipeReproducible(t *testing.T) {
	var archives [2]bytes.Buffer
	for i := range archives {
		image, err := Make("pause", ".", t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Write(&archives[i]); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0].Bytes(), archives[1].Bytes()) {
		t.Errorf("two images of one recipe differ: %d and %d bytes", archives[0].Len(), archives[1].Len())
	}
}

// The archive is a docker-archive and an OCI layout at once: both indexes lead to blobs that are there.
func TestArchive(t *testing.T) {
	tree := NewTree()
	if err := errors.Join(tree.AddText("etc/x/y", []byte("hello"), 0o644), tree.AddLink("bin", "usr/bin"), tree.AddDir("tmp", fs.ModeSticky|0o777)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := (Image{Name: "example.org/a:1", Files: tree}).Write(&out); err != nil {
		t.Fatal(err)
	}
	parts := map[string][]byte{}
	for archive := tar.NewReader(&out); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if parts[h.Name], err = io.ReadAll(archive); err != nil {
			t.Fatal(err)
		}
	}
	var docker []struct {
		Config           string
		RepoTags, Layers []string
	}
	var index struct{ Manifests []descriptor }
	if err := errors.Join(json.Unmarshal(parts["manifest.json"], &docker), json.Unmarshal(parts["index.json"], &index)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{docker[0].Config, docker[0].Layers[0], blob(index.Manifests[0])} {
		data, exists := parts[name]
		if !exists || describe("", data).Digest != "sha256:"+filepath.Base(name) {
			t.Errorf("archive has no blob %s, or other bytes under its name", name)
		}
	}
	if got := docker[0].RepoTags[0]; got != "example.org/a:1" {
		t.Errorf("name in the archive = %q, want example.org/a:1", got)
	}
}

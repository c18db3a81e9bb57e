// Package images writes container images without a daemon and without a registry: from static programs, folders and
// Debian packages, under any name and tag. What it writes is at once an OCI image layout and a docker-archive, so every
// tool that loads images takes it. The same input gives the same bytes: names are sorted, times and owners are fixed.
package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// epoch is the time of everything in an image.
var epoch = time.Unix(0, 0).UTC()

// Image is what goes into an archive.
type Image struct {
	Name       string // with tag: example.org/echo:1
	Entrypoint []string
	Cmd        []string
	Env        []string // NAME=value
	User       string   // "" for root
	WorkingDir string
	Files      *Tree
}

// Tree is the file system of an image: one layer. The zero value is not ready, see NewTree.
type Tree struct {
	entries map[string]entry
}

type entry struct {
	header tar.Header
	source string // file on this machine with the content, or ""
	data   []byte // the content, when source is ""
}

// NewTree returns an empty file system.
func NewTree() *Tree { return &Tree{entries: map[string]entry{}} }

// put adds an entry and the folders above it; what had the name before is replaced.
func (t *Tree) put(name string, e entry) error {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return nil
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		have, exists := t.entries[dir]
		if exists && have.header.Typeflag == tar.TypeSymlink {
			return fmt.Errorf("%s: %s above it is a link", name, dir)
		}
		if !exists {
			t.entries[dir] = entry{header: tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}}
		}
	}
	t.entries[name] = e
	return nil
}

// AddFile adds a file of this machine under a name in the image.
func (t *Tree) AddFile(name, source string, mode fs.FileMode) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", source)
	}
	return t.put(name, entry{header: tar.Header{Typeflag: tar.TypeReg, Mode: int64(mode.Perm()), Size: info.Size()}, source: source})
}

// AddText adds a file with the given content.
func (t *Tree) AddText(name string, data []byte, mode fs.FileMode) error {
	return t.put(name, entry{header: tar.Header{Typeflag: tar.TypeReg, Mode: int64(mode.Perm()), Size: int64(len(data))}, data: data})
}

// AddLink adds a symbolic link to target.
func (t *Tree) AddLink(name, target string) error {
	return t.put(name, entry{header: tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: target}})
}

// AddDir adds an empty folder.
func (t *Tree) AddDir(name string, mode fs.FileMode) error {
	bits := int64(mode.Perm())
	if mode&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return t.put(name, entry{header: tar.Header{Typeflag: tar.TypeDir, Mode: bits}})
}

// AddFolder adds everything below a folder of this machine.
func (t *Tree) AddFolder(name, source string) error {
	return filepath.WalkDir(source, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(source, file)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		at := path.Join(name, filepath.ToSlash(relative))
		switch {
		case d.IsDir():
			return t.AddDir(at, info.Mode())
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			return t.AddLink(at, target)
		}
		return t.AddFile(at, file, info.Mode())
	})
}

// AddTar adds the entries of a tar stream that keep accepts (nil for all); devices and other special files are left
// out. A folder that the stream puts where the tree has a link (/bin in a merged /usr) goes where the link leads.
func (t *Tree) AddTar(r io.Reader, keep func(name string) bool) error {
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := t.follow(strings.TrimPrefix(path.Clean("/"+h.Name), "/"))
		if name == "" || keep != nil && !keep(name) {
			continue
		}
		switch h.Typeflag {
		case tar.TypeDir:
			if have, exists := t.entries[name]; !exists || have.header.Typeflag != tar.TypeDir {
				err = t.AddDir(name, h.FileInfo().Mode())
			}
		case tar.TypeSymlink:
			err = t.AddLink(name, h.Linkname)
		case tar.TypeLink:
			have, exists := t.entries[t.follow(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"))]
			if !exists {
				return fmt.Errorf("%s is a hard link to %s, which is not there", h.Name, h.Linkname)
			}
			err = t.put(name, have)
		case tar.TypeReg:
			var data []byte
			if data, err = io.ReadAll(archive); err == nil {
				err = t.AddText(name, data, h.FileInfo().Mode())
			}
		}
		if err != nil {
			return err
		}
	}
}

// follow replaces a first path element that is a link by where it leads.
func (t *Tree) follow(name string) string {
	first, rest, _ := strings.Cut(name, "/")
	if have, exists := t.entries[first]; exists && have.header.Typeflag == tar.TypeSymlink {
		return path.Join(strings.TrimPrefix(have.header.Linkname, "/"), rest)
	}
	return name
}

// writeLayer writes the tree as one uncompressed tar. Compression would cost more time than it saves: nothing is sent.
func (t *Tree) writeLayer(w io.Writer) error {
	out := tar.NewWriter(w)
	names := make([]string, 0, len(t.entries))
	for name := range t.entries {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		e := t.entries[name]
		h := e.header
		h.Name, h.ModTime, h.Format = name, epoch, tar.FormatPAX
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if err := out.WriteHeader(&h); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if e.source == "" {
			if _, err := out.Write(e.data); err != nil {
				return fmt.Errorf("write %s: %w", name, err)
			}
			continue
		}
		if err := copyFile(out, e.source); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return out.Close()
}

func copyFile(w io.Writer, file string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(w, in)
	return err
}

// descriptor points at a blob (OCI image specification, descriptor.md).
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    map[string]string `json:"platform,omitempty"`
}

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// Write writes the image's archive. Files are read twice: once for the digest, which stands before them.
func (i Image) Write(w io.Writer) error {
	if i.Name == "" || i.Files == nil {
		return errors.New("image: name and files are needed")
	}
	sum := sha256.New()
	var size counter
	if err := i.Files.writeLayer(io.MultiWriter(sum, &size)); err != nil {
		return fmt.Errorf("image %s: %w", i.Name, err)
	}
	layer := descriptor{MediaType: typeLayer, Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Size: int64(size)}
	config := encode(map[string]any{
		"created": epoch, "architecture": runtime.GOARCH, "os": "linux",
		"config": settings{Entrypoint: i.Entrypoint, Cmd: i.Cmd, Env: i.Env, User: i.User, WorkingDir: i.WorkingDir},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}},
	})
	configBlob := describe(typeConfig, config)
	manifest := encode(map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": configBlob, "layers": []descriptor{layer}})
	manifestBlob := describe(typeManifest, manifest)
	manifestBlob.Platform = map[string]string{"architecture": runtime.GOARCH, "os": "linux"}
	manifestBlob.Annotations = map[string]string{"io.containerd.image.name": i.Name, "org.opencontainers.image.ref.name": i.Name}
	index := encode(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []descriptor{manifestBlob}})
	docker := encode([]any{map[string]any{"Config": blob(configBlob), "RepoTags": []string{i.Name}, "Layers": []string{blob(layer)}}})

	out := tar.NewWriter(w)
	for _, part := range []struct {
		name string
		data []byte
	}{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", index}, {"manifest.json", docker},
		{blob(configBlob), config}, {blob(manifestBlob), manifest},
	} {
		if err := out.WriteHeader(header(part.name, int64(len(part.data)))); err != nil {
			return err
		}
		if _, err := out.Write(part.data); err != nil {
			return err
		}
	}
	if err := out.WriteHeader(header(blob(layer), layer.Size)); err != nil {
		return err
	}
	if err := i.Files.writeLayer(out); err != nil {
		return fmt.Errorf("image %s: %w", i.Name, err)
	}
	return out.Close()
}

// WriteFile writes the archive to a file, whole or not at all.
func (i Image) WriteFile(name string) error {
	out, err := os.CreateTemp(filepath.Dir(name), ".image-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name()) // fails once renamed
	err = i.Write(out)
	if err := errors.Join(err, out.Chmod(0o644), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), name)
}

// settings are the run-time part of an image's configuration (OCI image specification, config.md).
type settings struct {
	Entrypoint []string `json:"Entrypoint,omitempty"`
	Cmd        []string `json:"Cmd,omitempty"`
	Env        []string `json:"Env,omitempty"`
	User       string   `json:"User,omitempty"`
	WorkingDir string   `json:"WorkingDir,omitempty"`
}

func header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: epoch, Format: tar.FormatPAX}
}

func blob(d descriptor) string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }

func describe(mediaType string, data []byte) descriptor {
	sum := sha256.Sum256(data)
	return descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(data))}
}

func encode(value any) []byte {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(value); err != nil {
		panic(err) // maps of strings and numbers always encode
	}
	return bytes.TrimSpace(b.Bytes())
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

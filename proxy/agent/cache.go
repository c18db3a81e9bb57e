package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/xds"
)

// cacheFile is the last good configuration: a line with the format, the SHA-256 of the rest, and the rest: one
// DeltaDiscoveryResponse with every resource of every type.
const cacheFile = "xds.cache"

// cacheMagic starts the file. Another format gets another number; a file with one this program does not know is
// ignored, so that an older program starts without a cache rather than not at all.
const cacheMagic = "isthmus-xds/1\n"

// maxCache bounds the file, in bytes: ten times what 10,000 clusters take.
const maxCache = 512 << 20

// encodeCache writes a State; equal States give equal bytes.
func encodeCache(state xds.State) ([]byte, error) {
	all := &discoveryv3.DeltaDiscoveryResponse{}
	for _, t := range state.Types() {
		first := len(all.Resources)
		for r := range state.All(t) {
			all.Resources = append(all.Resources, &discoveryv3.Resource{Name: r.Name, Version: r.Version, Resource: r.Body})
		}
		slices.SortFunc(all.Resources[first:], func(a, b *discoveryv3.Resource) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encode the configuration: %w", err)
	}
	sum := sha256.Sum256(body)
	return slices.Concat([]byte(cacheMagic), sum[:], body), nil
}

// decodeCache reads what encodeCache wrote.
func decodeCache(data []byte) (xds.State, error) {
	rest, ok := bytes.CutPrefix(data, []byte(cacheMagic))
	if !ok || len(rest) < sha256.Size {
		return xds.State{}, errors.New("unknown format")
	}
	body := rest[sha256.Size:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], rest[:sha256.Size]) {
		return xds.State{}, errors.New("checksum does not match")
	}
	var all discoveryv3.DeltaDiscoveryResponse
	if err := proto.Unmarshal(body, &all); err != nil {
		return xds.State{}, fmt.Errorf("decode: %w", err)
	}
	types := map[string]map[string]xds.Resource{}
	for _, r := range all.Resources {
		t := r.GetResource().GetTypeUrl()
		if t == "" || r.Name == "" || r.Version == "" {
			return xds.State{}, fmt.Errorf("resource %q without type or version", r.Name)
		}
		if types[t] == nil {
			types[t] = map[string]xds.Resource{}
		}
		types[t][r.Name] = xds.Resource{Name: r.Name, Version: r.Version, Body: r.Resource}
	}
	var state xds.State
	for t, resources := range types {
		state = state.With(t, resources)
	}
	return state, nil
}

// readCache reads the cache in dir. ok is false when there is none; an error says that there is one, damaged.
func readCache(dir string) (state xds.State, ok bool, err error) {
	path := filepath.Join(dir, cacheFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state, false, nil
	}
	if err == nil && info.Size() > maxCache {
		err = fmt.Errorf("%d bytes, at most %d are expected", info.Size(), maxCache)
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	if err == nil {
		state, err = decodeCache(data)
	}
	if err != nil {
		return xds.State{}, false, fmt.Errorf("last good configuration %s: %w", path, err)
	}
	return state, true, nil
}

// writeCache replaces the cache in dir: after a crash it is the old one or the new one, whole.
func writeCache(dir string, state xds.State) (err error) {
	data, err := encodeCache(state)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, cacheFile)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write the last good configuration: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write the last good configuration: %w", err)
		}
	}()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

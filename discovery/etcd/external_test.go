package etcd

import (
	"math/big"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/discovery/etcd/etcdtest"
	"isthmus.dev/isthmus/internal/hint"
)

// TestExternal uses a server that listens with mTLS, as an outside cluster does.
func TestExternal(t *testing.T) {
	server := etcdtest.Start(t)
	good := ExternalConfig{Endpoints: []string{server.Endpoint}, Cert: server.Cert, Key: server.Key, CA: server.CA, DialTimeout: time.Second}
	client, err := External(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	store := NewStore(client)
	if _, err := put(t.Context(), store, object("a"), []byte("{}"), config.Absent); err != nil {
		t.Error(err)
	}
	var ops []config.Change
	for range 2 * embed.DefaultMaxTxnOps {
		ops = append(ops, config.Change{Name: object("s" + big.NewInt(int64(len(ops))).String()), JSON: []byte("{}")})
	}
	if _, err := store.Commit(t.Context(), ops...); hint.CodeOf(err) != "too_many_objects" || hint.Of(err) == "" {
		t.Errorf("more than an outside server takes at once: %v, code %q", err, hint.CodeOf(err))
	}
	stranger := good
	stranger.Cert, stranger.Key, _ = etcdtest.PKI(t, t.TempDir())
	other := good
	_, _, other.CA = etcdtest.PKI(t, t.TempDir())
	nobody := good
	nobody.Endpoints = []string{"https://127.0.0.1:1"}
	for why, config := range map[string]ExternalConfig{"a client of another authority": stranger, "a server of another authority": other, "nobody there": nobody} {
		if client, err := External(t.Context(), config); err == nil {
			_ = client.Close()
			t.Errorf("%s: connected", why)
		} else if hint.Of(err) == "" {
			t.Errorf("%s: no hint with %v", why, err)
		}
	}
}

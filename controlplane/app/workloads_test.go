package app

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	language "isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/proxies"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/identity"
)

// TestCheckLedger: what is wrong with the ledger reaches the operator, with what to do.
func TestCheckLedger(t *testing.T) {
	dir := t.TempDir()
	open := func() (*workloads, func(string) error) {
		t.Helper()
		ledger, err := proxies.OpenLedger(dir, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- ledger.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		return &workloads{ledger: ledger}, func(instance string) error {
			return ledger.Keep(t.Context(), identity.Issued{
				Serial: instance, NotAfter: time.Now().Add(time.Hour),
				Record: identity.Record{ProxyID: mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: instance}, Account: "a"},
			})
		}
	}
	expect := func(w *workloads, status string, parts ...string) {
		t.Helper()
		check := w.checkLedger()
		if check.GetId() != "ledger" || check.GetStatus() != status || (check.GetHint() == "") != (status == "ok") {
			t.Errorf("%v, want %s", check, status)
		}
		for _, part := range parts {
			if !strings.Contains(check.GetMessage()+" "+check.GetHint(), part) {
				t.Errorf("%v does not say %q", check, part)
			}
		}
	}
	w, keep := open()
	expect(w, "ok", "0 certificates")
	if err := errors.Join(keep("a"), keep("b")); err != nil {
		t.Fatal(err)
	}
	expect(w, "ok", "2 certificates")
	path := filepath.Join(dir, "leaves")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	w, keep = open()
	expect(w, "warn", path+".damaged-1", "until")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	// The file that is open can still be appended to; when it is written anew there is nowhere to write it.
	for i := 0; keep("c") == nil; i++ {
		if i > 10000 {
			t.Fatal("a ledger without a folder is never missed")
		}
	}
	expect(w, "fail", "not issued", "who may write there")
}

// TestRegistered: who may have an identity. A workload is one of the state, under the account that the registry has for
// it; a gateway has an entry in the registry alone.
func TestRegistered(t *testing.T) {
	run, err := os.MkdirTemp("", "isthmus") // short: a socket lives below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	config := Config{Dir: t.TempDir(), Run: run, Log: slog.New(slog.DiscardHandler)}
	registry, err := openRegistry(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.close(config.Log) })
	owner := world.New(world.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- owner.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	w := &workloads{controlPlane: &controlPlane{store: registry.store, world: owner}}

	sidecar := func(instance, account string) identity.Record {
		return identity.Record{ProxyID: mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: instance}, Account: account}
	}
	gateway := func(instance string) identity.Record {
		return identity.Record{ProxyID: mesh.ProxyID{Kind: mesh.EastWest, Namespace: mesh.SystemNamespace, Instance: instance}, Account: "gateway"}
	}
	if err := w.registered(ctx, sidecar("reviews-1", "reviews")); status.Code(err) != codes.Unavailable {
		t.Errorf("before the state is loaded: %v, want an error that lets it ask again", err)
	}
	name := mesh.WorkloadName{Namespace: "shop", Name: "reviews-1"}
	updates := []mesh.Update{mesh.SetWorkload{Workload: &mesh.Workload{Name: name, ServiceAccount: "reviews"}},
		mesh.Synced{Source: mesh.SourceRegistry}, mesh.Synced{Source: mesh.SourceRemote}, mesh.Synced{Source: mesh.SourceTrust}, mesh.Synced{Source: mesh.SourceAllocated}}
	if err := owner.Send(ctx, updates...); err != nil {
		t.Fatal(err)
	}
	entry := mesh.ObjectName{Kind: language.KindWorkloadEntry, Namespace: mesh.SystemNamespace, Name: "gateway"}
	if _, err := registry.store.Commit(ctx, language.Change{Name: entry, JSON: []byte(`{}`), Expect: language.AnyVersion}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		why  string
		who  identity.Record
		want codes.Code
	}{
		{"a registered workload", sidecar("reviews-1", "reviews"), codes.OK},
		{"one that is registered under another account now", sidecar("reviews-1", "admin"), codes.PermissionDenied},
		{"one that is not registered", sidecar("reviews-2", "reviews"), codes.PermissionDenied},
		{"a registered gateway", gateway("gateway"), codes.OK},
		{"a gateway that is not", gateway("gateway-2"), codes.PermissionDenied},
	} {
		if err := w.registered(ctx, test.who); status.Code(err) != test.want {
			t.Errorf("%s: %v, want %v", test.why, err, test.want)
		}
	}
	gone, cancelled := context.WithCancel(ctx)
	cancelled()
	if err := w.registered(gone, gateway("gateway")); status.Code(err) != codes.Unavailable {
		t.Errorf("a registry that does not answer: %v, want an error that lets it ask again", err)
	}
}

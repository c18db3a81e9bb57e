package membership

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"

	docpb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/federation/join"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/trust/store"
)

// FoundRequest founds a federation.
type FoundRequest struct {
	Cluster    mesh.ClusterName
	Federation mesh.FederationName
	Region     string
	Gateways   []string // ip:port
	// Passphrase encrypts the recovery file; empty: one is made.
	Passphrase string
}

// Founded is what a person has to keep.
type Founded struct {
	RecoveryFile string
	Passphrase   string // set if it was made here
	Phases       []join.Phase
}

// stopwatch collects phases.
type stopwatch struct {
	last   time.Time
	phases []join.Phase
}

func (w *stopwatch) lap(name string) {
	now := time.Now()
	w.phases = append(w.phases, join.Phase{Name: name, Took: now.Sub(w.last)})
	w.last = now
}

// Found makes this cluster the authority of a new federation: root, own intermediate, recovery file, first document. An
// attempt that fails leaves the cluster alone and may be repeated.
func (m *Membership) Found(r FoundRequest) (*Founded, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.refuseMember(); err != nil {
		return nil, err
	}
	member, err := checkFound(r)
	if err != nil {
		return nil, err
	}
	watch := stopwatch{last: time.Now()}
	now := m.now()
	s, err := makeAuthority(r, now)
	if err != nil {
		return nil, err
	}
	member.IntermediateKey, err = ca.KeyHash(s.issuer.Signer.Public())
	if err != nil {
		return nil, err
	}
	root, err := document.NewRoot(s.root.Certificate, docpb.Root_ACTIVE)
	if err != nil {
		return nil, err
	}
	first, err := document.Found(r.Federation, document.Key{Root: root, Signer: s.root.Signer}, *member, now)
	if err != nil {
		return nil, err
	}
	watch.lap("keys")
	out := &Founded{RecoveryFile: m.secrets.Path(RecoveryFile)}
	p := store.Passphrase{Text: r.Passphrase}
	if p.Text == "" {
		p = store.NewPassphrase()
		out.Passphrase = p.Text
	}
	if err := m.writeRecovery(s.root, p); err != nil {
		return nil, err
	}
	watch.lap("recovery")
	if err := m.writeAuthority(s); err != nil {
		return nil, err
	}
	if err := m.enter(s, []*document.Sealed{first}); err != nil {
		return nil, err
	}
	watch.lap("store")
	out.Phases = watch.phases
	m.log.Info("federation founded", "federation", r.Federation, "cluster", r.Cluster)
	return out, nil
}

// enter takes over a standing and its documents. The standing comes first: whoever the documents wake has to find it.
func (m *Membership) enter(s *standing, chain []*document.Sealed) error {
	m.standing.Store(s)
	if err := m.roster.Start(chain); err != nil {
		m.standing.Store(nil)
		return err
	}
	return nil
}

func checkFound(r FoundRequest) (*document.Member, error) {
	if err := r.Cluster.Validate(); err != nil {
		return nil, hint.Wrap(err, "choose a lower-case DNS label, for example east")
	}
	if err := r.Federation.Validate(); err != nil {
		return nil, hint.Wrap(err, "choose a DNS name of yours, for example mesh.example.com")
	}
	if err := document.CheckRegion(r.Region); err != nil {
		return nil, err
	}
	gateways, err := document.ParseGateways(r.Gateways)
	if err != nil {
		return nil, err
	}
	return &document.Member{Member: mesh.Member{Name: r.Cluster, Region: r.Region, Gateways: gateways}}, nil
}

// makeAuthority makes all keys of a new authority.
func makeAuthority(r FoundRequest, now time.Time) (*standing, error) {
	rootKey, err := ca.NewKey()
	if err != nil {
		return nil, err
	}
	root, err := ca.NewRoot(r.Federation, rootKey, now)
	if err != nil {
		return nil, err
	}
	key, err := ca.NewKey()
	if err != nil {
		return nil, err
	}
	cert, err := root.NewIntermediate(mesh.TrustDomainOf(r.Cluster, r.Federation), key.Public(), now)
	if err != nil {
		return nil, err
	}
	return &standing{self: r.Cluster, root: root, issuer: &ca.Issuer{Certificate: cert, Chain: []*x509.Certificate{cert}, Signer: key}}, nil
}

func (m *Membership) writeAuthority(s *standing) error {
	if err := m.secrets.WriteKey(rootKeyFile, s.root.Signer); err != nil {
		return err
	}
	if err := m.secrets.WriteCertificates(rootFile, []*x509.Certificate{s.root.Certificate}); err != nil {
		return err
	}
	return m.writeIntermediate(s.issuer)
}

func (m *Membership) writeIntermediate(i *ca.Issuer) error {
	if err := m.secrets.WriteKey(intermediateKeyFile, i.Signer); err != nil {
		return err
	}
	return m.secrets.WriteCertificates(intermediateFile, i.Chain)
}

// writeRecovery writes root certificate and key, PEM, encrypted.
func (m *Membership) writeRecovery(root *ca.Issuer, p store.Passphrase) error {
	der, err := x509.MarshalPKCS8PrivateKey(root.Signer)
	if err != nil {
		return fmt.Errorf("encode the root's key: %w", err)
	}
	var plain bytes.Buffer
	for _, b := range []*pem.Block{{Type: "CERTIFICATE", Bytes: root.Certificate.Raw}, {Type: "PRIVATE KEY", Bytes: der}} {
		if err := pem.Encode(&plain, b); err != nil {
			return fmt.Errorf("encode the root's key: %w", err)
		}
	}
	sealed, err := store.Seal(plain.Bytes(), p)
	if err != nil {
		return err
	}
	return m.secrets.Write(RecoveryFile, sealed)
}

// JoinRequest joins a federation.
type JoinRequest struct {
	Token string
	// Cluster is the name this cluster wants; empty: the token's.
	Cluster  mesh.ClusterName
	Region   string
	Gateways []string // ip:port, as others reach this cluster
	// Dial opens a plain connection to a gateway of the authority; nil: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Join redeems a token. A cluster that is in a federation is refused and nothing changes; an attempt that fails leaves
// it alone.
func (m *Membership) Join(ctx context.Context, r JoinRequest) (*join.Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.refuseMember(); err != nil {
		return nil, err
	}
	var key crypto.Signer
	result, err := join.Join(ctx, join.Config{
		Token: r.Token, Self: r.Cluster, Region: r.Region, Gateways: r.Gateways, Dial: r.Dial, Now: m.now,
		Key: func() (_ crypto.Signer, err error) {
			key, err = m.joiningKey()
			return key, err
		},
	})
	if err != nil {
		return nil, err
	}
	watch := stopwatch{last: time.Now()}
	issuer := &ca.Issuer{Certificate: result.Chain[0], Chain: result.Chain[:1], Signer: key}
	if err := m.writeIntermediate(issuer); err != nil {
		return nil, err
	}
	if err := m.enter(&standing{self: result.Cluster, issuer: issuer}, result.Documents); err != nil {
		return nil, err
	}
	if err := m.secrets.Remove(joiningKeyFile); err != nil {
		m.log.Warn("leftover of the join", "err", err)
	}
	watch.lap("store")
	result.Phases = append(result.Phases, watch.phases...)
	m.log.Info("federation joined", "federation", result.Federation, "cluster", result.Cluster)
	return result, nil
}

// joiningKey is the key of the intermediate to be, on disk before anybody hears of it: after a crash the same key may
// redeem the token again.
func (m *Membership) joiningKey() (crypto.Signer, error) {
	key, err := m.secrets.ReadKey(joiningKeyFile)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	made, err := ca.NewKey()
	if err != nil {
		return nil, err
	}
	return made, m.secrets.WriteKey(joiningKeyFile, made)
}

// BurntIfLeft is when this cluster's name could be used again if it left now, by its own clock; zero if it cannot leave.
func (m *Membership) BurntIfLeft() time.Time {
	if s := m.standing.Load(); s == nil || s.root != nil {
		return time.Time{}
	}
	return burntUntil(m.now())
}

// Leave ends the membership: the authority first (goodbye calls its Membership.Leave, and gives until when it says that the
// name is burnt, zero if it does not), then this side. If the authority cannot be reached nothing changes.
func (m *Membership) Leave(ctx context.Context, goodbye func(context.Context) (time.Time, error)) (until time.Time, err error) {
	s := m.standing.Load()
	if s == nil {
		return time.Time{}, alone()
	}
	if s.root != nil {
		err := fmt.Errorf("cluster %q is the authority of the federation and cannot leave it", s.self)
		return time.Time{}, hint.Wrap(err, "let the other clusters leave, then delete this cluster's data")
	}
	until, err = goodbye(ctx)
	if err != nil {
		return time.Time{}, fmt.Errorf("tell the authority that cluster %q leaves: %w", s.self, err)
	}
	if until.IsZero() {
		until = burntUntil(m.now())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.forget(); err != nil {
		return time.Time{}, err
	}
	m.log.Info("federation left", "cluster", s.self)
	return until, nil
}

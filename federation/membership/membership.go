// Package membership is this cluster's standing in a federation: alone, member or authority.
//
// It owns the cluster's keys (through trust/store) and ties the pure parts together: founding a federation, joining and
// leaving one, and, where this cluster holds the root, admitting others. What it gives to others (Trust, Verifier,
// Certificate) is always that of the present document; who wants to hear of changes watches the roster.
package membership

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/federation/join"
	"isthmus.dev/isthmus/federation/roster"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/trust/store"
)

// Files of the trust folder. The documents are written last: without them the rest is the leftover of an attempt.
const (
	rootKeyFile         = "root.key"
	rootFile            = "root.pem"
	intermediateKeyFile = "intermediate.key"
	intermediateFile    = "intermediate.pem"
	// joiningKeyFile is the key of a join that has not been answered yet: a second attempt uses it again.
	joiningKeyFile = "joining.key"
	tokensFolder   = "tokens"
	// RecoveryFile is the encrypted root, written by Found.
	RecoveryFile = "recovery.age"
)

// Config of a Membership.
type Config struct {
	// Dir is the control plane's data folder; "trust" and "federation" are made in it.
	Dir string
	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: none
}

// Membership is the owner of this cluster's standing. Its methods may be called from several goroutines.
type Membership struct {
	now     func() time.Time
	log     *slog.Logger
	secrets *store.Dir
	roster  *roster.Roster
	tokens  *join.Tokens

	// standing is nil while the cluster is alone; replaced as a whole.
	standing atomic.Pointer[standing]
	// derived is what the present document comes to; made when asked for.
	derived atomic.Pointer[derived]

	mu     sync.Mutex // guards leaves, and serialises changes of standing and of the document
	leaves map[string]*tls.Certificate
}

// standing is what the cluster holds as a member. It is immutable.
type standing struct {
	self   mesh.ClusterName
	issuer *ca.Issuer
	// root is nil unless this cluster is the authority.
	root *ca.Issuer
}

// derived belongs to one document.
type derived struct {
	document *document.Sealed
	trust    *mesh.Trust
	verifier *anchor.Verifier
}

// Open reads the standing from disk. A cluster without documents is alone.
func Open(c Config) (*Membership, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	secrets, err := store.Open(filepath.Join(c.Dir, "trust"))
	if err != nil {
		return nil, err
	}
	folder, err := secrets.Sub(tokensFolder)
	if err != nil {
		return nil, err
	}
	tokens, err := join.OpenTokens(folder, c.Now)
	if err != nil {
		return nil, err
	}
	r, err := roster.Open(filepath.Join(c.Dir, "federation"), c.Now)
	if err != nil {
		return nil, err
	}
	m := &Membership{now: c.Now, log: c.Log, secrets: secrets, roster: r, tokens: tokens, leaves: map[string]*tls.Certificate{}}
	if d := r.Current(); d != nil {
		s, err := load(secrets, d)
		if err != nil && hint.Of(err) == "" {
			err = hint.Wrapf(err, "restore %s from a backup of this cluster's data", secrets.Path(""))
		}
		if err != nil {
			return nil, err
		}
		m.standing.Store(s)
	}
	return m, nil
}

// load reads the keys of a member.
func load(secrets *store.Dir, d *document.Sealed) (*standing, error) {
	issuer, err := loadIssuer(secrets, intermediateFile, intermediateKeyFile)
	if err != nil {
		return nil, err
	}
	issuer.Chain = []*x509.Certificate{issuer.Certificate}
	hosts := issuer.Certificate.PermittedURIDomains
	if len(hosts) != 1 {
		return nil, fmt.Errorf("%s is not an intermediate of one cluster", secrets.Path(intermediateFile))
	}
	self, ok := strings.CutSuffix(hosts[0], "."+string(d.Federation))
	if !ok {
		return nil, fmt.Errorf("%s is of %s, the documents are of federation %s", secrets.Path(intermediateFile), hosts[0], d.Federation)
	}
	s := &standing{self: mesh.ClusterName(self), issuer: issuer}
	if me, ok := d.Member(s.self); !ok || !me.Authority {
		return s, nil
	}
	s.root, err = loadIssuer(secrets, rootFile, rootKeyFile)
	if err != nil {
		return nil, fmt.Errorf("this cluster is the authority of %s: %w", d.Federation, err)
	}
	return s, nil
}

func loadIssuer(secrets *store.Dir, certFile, keyFile string) (*ca.Issuer, error) {
	certs, err := secrets.ReadCertificates(certFile)
	if err != nil {
		return nil, err
	}
	key, err := secrets.ReadKey(keyFile)
	if err != nil {
		return nil, err
	}
	have, err := ca.KeyHash(key.Public())
	if err != nil {
		return nil, err
	}
	if want, err := ca.KeyHash(certs[0].PublicKey); err != nil || have != want {
		return nil, fmt.Errorf("%s and %s do not belong together", secrets.Path(certFile), secrets.Path(keyFile))
	}
	return &ca.Issuer{Certificate: certs[0], Signer: key}, nil
}

// ErrAlone is a question only a member can answer.
var ErrAlone = errors.New("this cluster is in no federation")

func alone() error {
	return hint.Code(hint.Wrap(ErrAlone,
		"found one: isthmus cluster init NAME --federation F; or join one: isthmus cluster join --token T"), "not_a_member")
}

// Self is this cluster's name; false while it is alone.
func (m *Membership) Self() (mesh.ClusterName, bool) {
	s := m.standing.Load()
	if s == nil {
		return "", false
	}
	return s.self, true
}

// IsAuthority tells whether this cluster holds the root.
func (m *Membership) IsAuthority() bool {
	s := m.standing.Load()
	return s != nil && s.root != nil
}

// Roster gives the documents, and their changes.
func (m *Membership) Roster() *roster.Roster { return m.roster }

// Tokens gives the authority's tokens. On other clusters there are none.
func (m *Membership) Tokens() *join.Tokens { return m.tokens }

// Issuer is this cluster's intermediate; nil while it is alone.
func (m *Membership) Issuer() *ca.Issuer {
	if s := m.standing.Load(); s != nil {
		return s.issuer
	}
	return nil
}

// present is what the present document comes to; nil while alone.
func (m *Membership) present() (*derived, error) {
	s, doc := m.standing.Load(), m.roster.Current()
	if s == nil || doc == nil {
		return nil, nil
	}
	if d := m.derived.Load(); d != nil && d.document == doc {
		return d, nil
	}
	trust, err := m.roster.Trust(s.self)
	if err != nil || trust == nil {
		return nil, err
	}
	v, err := anchor.NewVerifier(trust.AnchorPEM, m.now)
	if err != nil {
		return nil, fmt.Errorf("verify with the anchors of document %d.%d: %w", trust.Term, trust.Seq, err)
	}
	keys := map[mesh.TrustDomain][32]byte{}
	for _, member := range doc.Members {
		keys[mesh.TrustDomainOf(member.Name, doc.Federation)] = member.IntermediateKey
	}
	d := &derived{document: doc, trust: trust, verifier: v.Believing(keys)}
	if trust.Term == doc.Version.Term && trust.Seq == doc.Version.Seq { // else a newer one came in between
		m.derived.Store(d)
	}
	return d, nil
}

// Trust is the trust section of the snapshot; nil while alone.
func (m *Membership) Trust() *mesh.Trust {
	d, err := m.present()
	if err != nil {
		m.log.Error("local anchors cannot be made", "err", err)
	}
	if d == nil {
		return nil
	}
	return d.trust
}

// Verifier verifies members; nil while alone.
func (m *Membership) Verifier() *anchor.Verifier {
	d, err := m.present()
	if err != nil {
		m.log.Error("local anchors cannot be made", "err", err)
	}
	if d == nil {
		return nil
	}
	return d.verifier
}

// Certificate is the present leaf of one of mesh's Path constants with its chain, without the root. Its key lives in
// memory only. It is made when first asked for and again at half its life or under a new intermediate.
func (m *Membership) Certificate(path string) (*tls.Certificate, error) {
	s := m.standing.Load()
	if s == nil {
		return nil, alone()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if c := m.leaves[path]; c != nil && string(c.Certificate[1]) == string(s.issuer.Certificate.Raw) {
		if half := c.Leaf.NotBefore.Add(c.Leaf.NotAfter.Sub(c.Leaf.NotBefore) / 2); now.Before(half) {
			return c, nil
		}
	}
	c, err := makeLeaf(s, path, now)
	if err != nil {
		return nil, err
	}
	m.leaves[path] = c
	return c, nil
}

func makeLeaf(s *standing, path string, now time.Time) (*tls.Certificate, error) {
	key, err := ca.NewKey()
	if err != nil {
		return nil, err
	}
	td := mesh.TrustDomain(s.issuer.Certificate.PermittedURIDomains[0])
	request, err := ca.SystemLeaf(td, path, key.Public())
	if err != nil {
		return nil, err
	}
	leaf, err := s.issuer.NewLeaf(request, now)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, i := range s.issuer.Chain {
		c.Certificate = append(c.Certificate, i.Raw)
	}
	return c, nil
}

// JoinCertificate is the federation leaf with the root at its end: a joiner pins the root and has to see it.
func (m *Membership) JoinCertificate() (*tls.Certificate, error) {
	s := m.standing.Load()
	if s == nil || s.root == nil {
		return nil, errors.New("this cluster is not the authority")
	}
	c, err := m.Certificate(mesh.PathFederation)
	if err != nil {
		return nil, err
	}
	with := *c
	with.Certificate = append(append([][]byte{}, c.Certificate...), s.root.Certificate.Raw)
	return &with, nil
}

// refuseMember says that a cluster that is in a federation cannot enter one. Callers hold m.mu.
func (m *Membership) refuseMember() error {
	s, d := m.standing.Load(), m.roster.Current()
	if s == nil || d == nil {
		return nil
	}
	err := fmt.Errorf("this cluster is %q of federation %q: %w", s.self, d.Federation, roster.ErrMember)
	return hint.Code(hint.Wrap(err, "leave it first: isthmus cluster leave"), join.CodeMember)
}

// forget ends the membership on this side: documents first, then keys. Callers hold m.mu.
func (m *Membership) forget() error {
	if err := m.roster.Forget(); err != nil {
		return err
	}
	m.standing.Store(nil)
	m.derived.Store(nil)
	m.leaves = map[string]*tls.Certificate{}
	for _, name := range []string{intermediateFile, intermediateKeyFile, joiningKeyFile} {
		if err := m.secrets.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

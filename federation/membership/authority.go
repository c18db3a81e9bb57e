package membership

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	docpb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/federation/join"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
)

// tailBytes of documents are sent to a joiner.
const tailBytes = 1 << 20

// Authority is this cluster's side as the holder of the root. It implements join.Admitter and join.Registrar.
type Authority struct {
	m    *Membership
	root *ca.Issuer
}

// Authority gives the authority's side; nil where this cluster is not the authority.
func (m *Membership) Authority() *Authority {
	if s := m.standing.Load(); s != nil && s.root != nil {
		return &Authority{m: m, root: s.root}
	}
	return nil
}

// Admitter is Authority for join.ServerConfig: a nil interface where this cluster is not the authority.
func (m *Membership) Admitter() join.Admitter {
	if a := m.Authority(); a != nil {
		return a
	}
	return nil
}

// Registrar is Authority for join.MemberServiceConfig: a nil interface where this cluster is not the authority.
func (m *Membership) Registrar() join.Registrar {
	if a := m.Authority(); a != nil {
		return a
	}
	return nil
}

// CreateToken makes a token and returns it as it is printed, with its end.
func (m *Membership) CreateToken(g join.Grant) (string, time.Time, error) {
	d := m.roster.Current()
	if d == nil {
		return "", time.Time{}, alone()
	}
	if !m.IsAuthority() {
		err := fmt.Errorf("make token for cluster %q: this cluster is not the authority of federation %q", g.Cluster, d.Federation)
		return "", time.Time{}, hint.Code(hint.Wrapf(err,
			"run it on the authority: isthmus --cluster %s cluster token create %s", d.Authority().Name, g.Cluster), "not_the_authority")
	}
	t, err := m.tokens.Create(d.Document, g)
	if err != nil {
		return "", time.Time{}, err
	}
	s, err := join.Encode(t)
	return s, time.Unix(t.ExpiresUnix, 0).UTC(), err
}

// key signs documents: the root of the present document that this cluster holds.
func (a *Authority) key(d *document.Document) (document.Key, error) {
	root, err := document.NewRoot(a.root.Certificate, docpb.Root_ACTIVE)
	if err != nil {
		return document.Key{}, err
	}
	if r, ok := d.Root(root.ID[:]); !ok || r.State != docpb.Root_ACTIVE {
		return document.Key{}, errors.New("the root this cluster holds does not sign in the present federation document")
	}
	return document.Key{Root: root, Signer: a.root.Signer}, nil
}

// Check implements join.Admitter.
func (a *Authority) Check(adm join.Admission) error {
	d := a.m.roster.Current()
	if d == nil {
		return alone()
	}
	if known, err := isMember(d.Document, adm); known || err != nil {
		return err
	}
	return document.Admits(d.Document, adm.Cluster, a.m.now())
}

// isMember tells whether an admission was made already: the name is a member with that very key.
func isMember(d *document.Document, adm join.Admission) (bool, error) {
	hash, err := ca.KeyHash(adm.Key)
	if err != nil {
		return false, err
	}
	member, ok := d.Member(adm.Cluster)
	return ok && member.IntermediateKey == hash && !member.Authority, nil
}

// change appends the document next makes of the present one.
func (a *Authority) change(next func(*document.Sealed, document.Key) (*document.Sealed, error)) error {
	d := a.m.roster.Current()
	if d == nil {
		return alone()
	}
	key, err := a.key(d.Document)
	if err != nil {
		return err
	}
	s, err := next(d, key)
	if err != nil {
		return err
	}
	return a.m.roster.Append(s.Wire())
}

// Admit implements join.Admitter: the document first, then the certificate. Without the document nobody would accept
// the certificate; without the certificate the joiner asks again.
func (a *Authority) Admit(_ context.Context, adm join.Admission) (*join.Admitted, error) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	d := a.m.roster.Current()
	if d == nil {
		return nil, alone()
	}
	known, err := isMember(d.Document, adm)
	if err != nil {
		return nil, err
	}
	if !known {
		hash, err := ca.KeyHash(adm.Key)
		if err != nil {
			return nil, err
		}
		member := document.Member{IntermediateKey: hash, Member: mesh.Member{
			Name: adm.Cluster, Region: adm.Region, Gateways: adm.Gateways, Namespaces: adm.Namespaces,
		}}
		err = a.change(func(prev *document.Sealed, key document.Key) (*document.Sealed, error) {
			return document.Admit(prev, key, member, a.m.now())
		})
		if err != nil {
			return nil, err
		}
	}
	chain, err := a.certify(adm.Cluster, d.Federation, adm.Key)
	if err != nil {
		return nil, err
	}
	return &join.Admitted{Chain: chain, Documents: a.m.roster.Tail(tailBytes)}, nil
}

func (a *Authority) certify(c mesh.ClusterName, f mesh.FederationName, key crypto.PublicKey) ([]*x509.Certificate, error) {
	cert, err := a.root.NewIntermediate(mesh.TrustDomainOf(c, f), key, a.m.now())
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{cert, a.root.Certificate}, nil
}

// Renew implements join.Registrar. It certifies the key that the document names, and no other: the request then proves
// that the member holds the key of its intermediate, which lives 90 days, and not only that of a leaf; nobody's anchors
// or documents change, so a member can neither push out the documents that others need to catch up nor have two
// intermediates. A new key is for a new membership.
func (a *Authority) Renew(_ context.Context, c mesh.ClusterName, key crypto.PublicKey) ([]*x509.Certificate, error) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	d := a.m.roster.Current()
	if d == nil {
		return nil, alone()
	}
	member, ok := d.Member(c)
	if !ok {
		return nil, fmt.Errorf("renew intermediate of cluster %q: %w", c, document.ErrUnknown)
	}
	hash, err := ca.KeyHash(key)
	if err != nil {
		return nil, err
	}
	if member.IntermediateKey != hash {
		err := fmt.Errorf("renew intermediate of cluster %q: federation document %s has another key for it", c, d.Version)
		return nil, hint.Code(hint.Wrapf(err, "renewal keeps the key; for another one, let the cluster leave and join again under another name: isthmus --cluster %s cluster leave", c), "other_key")
	}
	return a.certify(c, d.Federation, key)
}

// burntUntil is when the name of a cluster that leaves at now may be used again: it is burnt for as long as an
// intermediate made for it just now would live, and no earlier one lives longer.
func burntUntil(now time.Time) time.Time {
	return now.Add(ca.IntermediateLife).UTC().Truncate(time.Second)
}

// Leave implements join.Registrar.
func (a *Authority) Leave(_ context.Context, c mesh.ClusterName) (until time.Time, err error) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	now := a.m.now()
	until = burntUntil(now)
	return until, a.change(func(prev *document.Sealed, key document.Key) (*document.Sealed, error) {
		return document.Leave(prev, key, c, until, now)
	})
}

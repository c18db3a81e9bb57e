package membership

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
)

const (
	// renewCheck is how often Run looks at the intermediate's age.
	renewCheck = time.Hour
)

// Run renews this cluster's intermediate when it is ca.IntermediateRenew old, until ctx ends. The authority does it
// itself; a member calls ask, which sends a request (PKCS#10) to the authority's Membership.Renew and returns the chain
// (DER). A failure is logged and tried again an hour later: sixty days are left then.
func (m *Membership) Run(ctx context.Context, ask func(ctx context.Context, csr []byte) ([][]byte, error)) error {
	tick := time.NewTicker(renewCheck)
	defer tick.Stop()
	for {
		if err := m.renewIfOld(ctx, ask); err != nil && ctx.Err() == nil {
			m.log.Warn("intermediate not renewed, next try in an hour", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (m *Membership) renewIfOld(ctx context.Context, ask func(context.Context, []byte) ([][]byte, error)) error {
	s, d := m.standing.Load(), m.roster.Current()
	if s == nil || d == nil || m.now().Sub(s.issuer.Certificate.NotBefore) < ca.IntermediateRenew+ca.Backdate {
		return nil
	}
	var chain []*x509.Certificate
	var err error
	if a := m.Authority(); a != nil {
		chain, err = a.Renew(ctx, s.self, s.issuer.Signer.Public())
	} else {
		chain, err = askAuthority(ctx, s, ask)
	}
	if err != nil {
		return err
	}
	root := chain[len(chain)-1]
	hash, err := ca.KeyHash(root.PublicKey)
	if err != nil {
		return err
	}
	if _, ok := d.Root(hash[:]); !ok {
		return fmt.Errorf("renew intermediate of cluster %q: it is signed by a root the federation document does not list", s.self)
	}
	td := mesh.TrustDomainOf(s.self, d.Federation)
	if err := ca.CheckIntermediate(chain[0], root, td, s.issuer.Signer.Public(), m.now()); err != nil {
		return err
	}
	issuer := &ca.Issuer{Certificate: chain[0], Chain: chain[:1], Signer: s.issuer.Signer}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.standing.Load() != s {
		return nil // left in between
	}
	if err := m.secrets.WriteCertificates(intermediateFile, issuer.Chain); err != nil {
		return err
	}
	m.standing.Store(&standing{self: s.self, issuer: issuer, root: s.root})
	m.log.Info("intermediate renewed", "cluster", s.self, "expires", chain[0].NotAfter)
	return nil
}

// askAuthority renews over the wire. The key stays the same, so the document does not change.
func askAuthority(ctx context.Context, s *standing, ask func(context.Context, []byte) ([][]byte, error)) ([]*x509.Certificate, error) {
	csr, err := ca.RequestFor(s.issuer.Signer)
	if err != nil {
		return nil, err
	}
	ders, err := ask(ctx, csr)
	if err != nil {
		return nil, fmt.Errorf("ask the authority to renew the intermediate of cluster %q: %w", s.self, err)
	}
	if len(ders) != 2 {
		return nil, fmt.Errorf("the authority answered with %d certificates, want intermediate and root", len(ders))
	}
	var chain []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate of the authority's answer: %w", err)
		}
		chain = append(chain, c)
	}
	return chain, nil
}

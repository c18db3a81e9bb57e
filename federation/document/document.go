// Package document is the federation document: the one signed truth about who is in a federation.
//
// Documents form a chain: each carries the hash of the one before and is signed by a root that one trusted, so a
// cluster that slept catches up from any peer, whoever that is. The package is pure: it decodes and verifies foreign
// bytes, and it makes the next document out of the present one.
package document

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// Bounds of a document, checked before or while it is decoded.
const (
	MaxBytes      = 1 << 20
	MaxMembers    = 1000
	maxBurnt      = 10000
	maxRoots      = 4
	maxGateways   = 16
	maxNamespaces = 1000
	maxSignatures = 8
	maxSignature  = 256 // bytes; ECDSA on P-384 needs 104
	// WireVersion is the version of the wire formats this program speaks.
	WireVersion = 1
)

// Version orders documents by term, then by seq. Seq grows by one with each document, whatever the term.
type Version struct{ Term, Seq uint64 }

// Compare is -1, 0 or 1.
func (v Version) Compare(w Version) int {
	if v.Term != w.Term {
		if v.Term < w.Term {
			return -1
		}
		return 1
	}
	if v.Seq != w.Seq {
		if v.Seq < w.Seq {
			return -1
		}
		return 1
	}
	return 0
}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Term, v.Seq) }

// RootState says what a root may do; the values are those of the wire.
type RootState = pb.Root_State

// Root is a root of trust.
type Root struct {
	Certificate *x509.Certificate
	ID          [32]byte // SHA-256 of its subject public key info
	State       RootState
}

// Member is one cluster.
type Member struct {
	mesh.Member
	// IntermediateKey is the SHA-256 of the subject public key info of its intermediate.
	IntermediateKey [32]byte
}

// Burnt is a name that may not be used again before Until, when its last intermediate has ended.
type Burnt struct {
	Name  mesh.ClusterName
	Until time.Time
}

// Document is the content of one document. It is immutable; transitions make a new one.
type Document struct {
	Federation mesh.FederationName
	Version    Version
	PrevHash   []byte // nil for the first
	Roots      []Root
	Members    []Member // in order of admission
	Burnt      []Burnt
	Issued     time.Time
	MinVersion uint32
}

// Member gives the member of that name.
func (d *Document) Member(c mesh.ClusterName) (*Member, bool) {
	for i := range d.Members {
		if d.Members[i].Name == c {
			return &d.Members[i], true
		}
	}
	return nil, false
}

// Authority gives the member that holds the root.
func (d *Document) Authority() *Member {
	for i := range d.Members {
		if d.Members[i].Authority {
			return &d.Members[i]
		}
	}
	return nil // not in a checked document
}

// Hosts are the trust domains of the members, in document order: what an anchor permits.
func (d *Document) Hosts() []mesh.TrustDomain {
	var out []mesh.TrustDomain
	for _, m := range d.Members {
		out = append(out, mesh.TrustDomainOf(m.Name, d.Federation))
	}
	return out
}

// Trusted are the certificates of the roots that proxies trust: all but the tainted.
func (d *Document) Trusted() []*x509.Certificate {
	var out []*x509.Certificate
	for _, r := range d.Roots {
		if r.State != pb.Root_TAINTED {
			out = append(out, r.Certificate)
		}
	}
	return out
}

// Root gives the root of that key hash.
func (d *Document) Root(id []byte) (*Root, bool) {
	for i := range d.Roots {
		if bytes.Equal(d.Roots[i].ID[:], id) {
			return &d.Roots[i], true
		}
	}
	return nil, false
}

// Trust is the document as the snapshot has it. The anchors are made elsewhere.
func (d *Document) Trust(self mesh.ClusterName, anchorPEM []byte) *mesh.Trust {
	t := &mesh.Trust{Federation: d.Federation, Self: self, Term: d.Version.Term, Seq: d.Version.Seq, AnchorPEM: anchorPEM}
	for _, m := range d.Members {
		t.Members = append(t.Members, m.Member)
	}
	return t
}

// encode makes the bytes that are signed.
func (d *Document) encode() ([]byte, error) {
	out := &pb.Document{
		Federation: string(d.Federation), Term: d.Version.Term, Seq: d.Version.Seq, PrevHash: d.PrevHash,
		IssuedUnix: d.Issued.Unix(), MinVersion: d.MinVersion,
	}
	for _, r := range d.Roots {
		out.Roots = append(out.Roots, &pb.Root{Certificate: r.Certificate.Raw, State: r.State})
	}
	for _, m := range d.Members {
		w := &pb.Member{
			Name: string(m.Name), Region: m.Region, Incarnation: m.Incarnation, IntermediateKey: m.IntermediateKey[:],
			Namespaces: m.Namespaces, Authority: m.Authority,
		}
		for _, g := range m.Gateways {
			w.Gateways = append(w.Gateways, &pb.Gateway{Address: g.Address.String()})
		}
		out.Members = append(out.Members, w)
	}
	for _, b := range d.Burnt {
		out.Burnt = append(out.Burnt, &pb.BurntName{Name: string(b.Name), UntilUnix: b.Until.Unix()})
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode federation document: %w", err)
	}
	return data, nil
}

// decode reads payload and checks everything a document promises on its own. Fields this program does not know are
// skipped: a newer authority raises min_version when an older member must not do so.
func decode(payload []byte) (*Document, error) {
	if len(payload) > MaxBytes {
		return nil, fmt.Errorf("federation document has %d bytes, %d at most", len(payload), MaxBytes)
	}
	var in pb.Document
	if err := proto.Unmarshal(payload, &in); err != nil {
		return nil, fmt.Errorf("federation document does not decode: %w", err)
	}
	d := &Document{
		Federation: mesh.FederationName(in.Federation), Version: Version{in.Term, in.Seq}, PrevHash: in.PrevHash,
		Issued: time.Unix(in.IssuedUnix, 0).UTC(), MinVersion: in.MinVersion,
	}
	if in.MinVersion > WireVersion {
		err := fmt.Errorf("federation document %s needs wire version %d, this program speaks %d", d.Version, in.MinVersion, WireVersion)
		return nil, hint.Wrap(err, "upgrade this cluster's control plane")
	}
	if err := checkCounts(len(in.Roots), len(in.Members), len(in.Burnt)); err != nil {
		return nil, fmt.Errorf("federation document %s: %w", d.Version, err)
	}
	for _, r := range in.Roots {
		root, err := decodeRoot(r)
		if err != nil {
			return nil, fmt.Errorf("federation document %s: %w", d.Version, err)
		}
		d.Roots = append(d.Roots, root)
	}
	for _, m := range in.Members {
		member, err := decodeMember(m)
		if err != nil {
			return nil, fmt.Errorf("federation document %s: member %q: %w", d.Version, m.GetName(), err)
		}
		d.Members = append(d.Members, member)
	}
	for _, b := range in.Burnt {
		d.Burnt = append(d.Burnt, Burnt{Name: mesh.ClusterName(b.GetName()), Until: time.Unix(b.GetUntilUnix(), 0).UTC()})
	}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("federation document %s: %w", d.Version, err)
	}
	return d, nil
}

func checkCounts(roots, members, burnt int) error {
	if roots > maxRoots || members > MaxMembers || burnt > maxBurnt {
		return fmt.Errorf("%d roots, %d members and %d burnt names; %d, %d and %d at most", roots, members, burnt, maxRoots, MaxMembers, maxBurnt)
	}
	return nil
}

func decodeRoot(r *pb.Root) (Root, error) {
	cert, err := x509.ParseCertificate(r.GetCertificate())
	if err != nil {
		return Root{}, fmt.Errorf("root: %w", err)
	}
	return NewRoot(cert, r.GetState())
}

// NewRoot makes a root of a document.
func NewRoot(cert *x509.Certificate, state RootState) (Root, error) {
	if _, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !cert.IsCA || !bytes.Equal(cert.RawIssuer, cert.RawSubject) {
		return Root{}, fmt.Errorf("root %q is not a self-signed authority with an ECDSA key", cert.Subject)
	}
	return Root{Certificate: cert, ID: sha256.Sum256(cert.RawSubjectPublicKeyInfo), State: state}, nil
}

func decodeMember(m *pb.Member) (Member, error) {
	out := Member{Member: mesh.Member{
		Name: mesh.ClusterName(m.GetName()), Region: m.GetRegion(), Incarnation: m.GetIncarnation(),
		Namespaces: m.GetNamespaces(), Authority: m.GetAuthority(),
	}}
	if copy(out.IntermediateKey[:], m.GetIntermediateKey()) != 32 || len(m.GetIntermediateKey()) != 32 {
		return Member{}, errors.New("the key of its intermediate is not a SHA-256")
	}
	addresses := make([]string, 0, len(m.GetGateways()))
	for _, g := range m.GetGateways() {
		addresses = append(addresses, g.GetAddress())
	}
	var err error
	out.Gateways, err = ParseGateways(addresses)
	return out, err
}

// ParseGateways parses gateway addresses, "ip:port" each, as other clusters reach them.
func ParseGateways(addresses []string) ([]mesh.Gateway, error) {
	if len(addresses) > maxGateways {
		return nil, fmt.Errorf("%d gateways, %d at most", len(addresses), maxGateways)
	}
	var out []mesh.Gateway
	for _, s := range addresses {
		a, err := netip.ParseAddrPort(s)
		if err != nil || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() || a.Addr().Zone() != "" || a.String() != s {
			err := fmt.Errorf("gateway %q is not an address and port that other clusters can reach", s)
			return nil, hint.Wrap(err, "write it as IP:PORT, for example 192.0.2.10:15443")
		}
		if slices.Contains(out, mesh.Gateway{Address: a}) {
			return nil, fmt.Errorf("gateway %s is named twice", s)
		}
		out = append(out, mesh.Gateway{Address: a})
	}
	return out, nil
}

// check tells what a document breaks of its promises. Transitions pass through it as well, so nothing is signed that
// peers would refuse.
func (d *Document) check() error {
	if err := d.Federation.Validate(); err != nil {
		return err
	}
	if d.Version.Term == 0 || d.Version.Seq == 0 {
		return errors.New("term and seq start at 1")
	}
	if first := d.Version.Seq == 1; first != (len(d.PrevHash) == 0) || !first && len(d.PrevHash) != sha256.Size {
		return errors.New("exactly the first document has no previous hash")
	}
	if err := checkCounts(len(d.Roots), len(d.Members), len(d.Burnt)); err != nil {
		return err
	}
	if err := checkRoots(d.Roots); err != nil {
		return err
	}
	return d.checkNames()
}

func checkRoots(roots []Root) error {
	active, trusted := 0, 0
	for i, r := range roots {
		switch r.State {
		case pb.Root_ACTIVE:
			active++
			trusted++
		case pb.Root_PUBLISHED:
			trusted++
		case pb.Root_TAINTED:
		default:
			return fmt.Errorf("root %x has unknown state %d", r.ID[:4], r.State)
		}
		if slices.ContainsFunc(roots[:i], func(o Root) bool { return o.ID == r.ID }) {
			return fmt.Errorf("root %x is listed twice", r.ID[:4])
		}
	}
	if active != 1 || trusted > 2 {
		return fmt.Errorf("%d roots sign and %d are trusted; one has to sign, two at most are trusted", active, trusted)
	}
	return nil
}

func (d *Document) checkNames() error {
	seen := map[mesh.ClusterName]bool{}
	authorities := 0
	for i := range d.Members {
		m := &d.Members[i]
		if err := checkMember(m); err != nil {
			return fmt.Errorf("member %q: %w", m.Name, err)
		}
		if seen[m.Name] {
			return fmt.Errorf("name %q is used twice", m.Name)
		}
		seen[m.Name] = true
		if m.Authority {
			authorities++
		}
	}
	if authorities != 1 {
		return fmt.Errorf("%d members are the authority, one has to be", authorities)
	}
	for _, b := range d.Burnt {
		if err := b.Name.Validate(); err != nil {
			return err
		}
		if seen[b.Name] {
			return fmt.Errorf("name %q is used twice or both used and burnt", b.Name)
		}
		seen[b.Name] = true
	}
	return nil
}

func checkMember(m *Member) error {
	if err := m.Name.Validate(); err != nil {
		return err
	}
	if err := CheckRegion(m.Region); err != nil {
		return err
	}
	if m.Incarnation == 0 {
		return errors.New("incarnation starts at 1")
	}
	return CheckNamespaces(m.Namespaces)
}

// CheckRegion says why s cannot name a region: a DNS-1123 subdomain of 63 characters at most, or nothing.
func CheckRegion(s string) error {
	if s != "" && (len(s) > 63 || !mesh.IsSubdomain(s)) {
		return hint.Wrap(fmt.Errorf("region %q is not a lower-case name of 63 characters at most", s),
			"use a-z, 0-9, '-' and '.', for example eu-west-1")
	}
	return nil
}

// CheckNamespaces says why namespaces cannot be granted: DNS-1123 labels, or "*" for all.
func CheckNamespaces(namespaces []string) error {
	if len(namespaces) > maxNamespaces {
		return fmt.Errorf("%d namespaces, %d at most", len(namespaces), maxNamespaces)
	}
	for i, n := range namespaces {
		if n != "*" && !mesh.IsLabel(n) {
			return fmt.Errorf("namespace %q is not a DNS-1123 label or \"*\"", n)
		}
		if slices.Contains(namespaces[:i], n) {
			return fmt.Errorf("namespace %q is granted twice", n)
		}
	}
	return nil
}

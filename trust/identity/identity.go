// Package identity gives proxies their identities: the first by a one-use token, later ones by the certificate they
// hold.
//
// Who a proxy is stands in the token's record, which the control plane makes when a workload is registered; nothing of
// what a proxy asks for reaches its certificate but its key. The certificate then says it all: the SPIFFE ID for other
// workloads, instance and kind for the control plane, so that the scope of an xDS client never rests on what it claims.
package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	pb "isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

const (
	// TokenLife is how long a token waits for its proxy.
	TokenLife = 60 * time.Second
	// maxTokens bounds tokens that wait.
	maxTokens = 10000
)

// Config of an Issuer. The functions are asked at every request.
type Config struct {
	// CA is this cluster's intermediate, Trust and Verifier what it trusts; nil while it is in no federation.
	CA       func() *ca.Issuer
	Trust    func() *mesh.Trust
	Verifier func() *anchor.Verifier
	// Registered tells whether a proxy still is: renewals end when it is not.
	Registered func(Record) bool
	// Life of a certificate; 0: ca.WorkloadLeafLife. Shorter means more signatures and a sooner end of a stolen key.
	Life time.Duration
	Now  func() time.Time // nil: time.Now
	Log  *slog.Logger     // nil: none
}

// Issuer is the Identity service. Tokens and ledger are in memory: after a restart of the control plane a proxy that
// still waits gets a new token, and one that has a certificate renews it.
type Issuer struct {
	workloadrpc.UnimplementedIdentityServer
	config Config

	mu     sync.Mutex // guards below
	tokens map[string]waiting
	ledger ledger
}

// waiting is a token that has not been used.
type waiting struct {
	record  Record
	secret  [32]byte // SHA-256 of it
	expires time.Time
}

// New makes an issuer.
func New(c Config) *Issuer {
	if c.Life == 0 {
		c.Life = ca.WorkloadLeafLife
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Issuer{config: c, tokens: map[string]waiting{}, ledger: newLedger()}
}

// authority is what issuing needs, all of the same moment.
type authority struct {
	ca    *ca.Issuer
	trust *mesh.Trust
	td    mesh.TrustDomain
}

func (i *Issuer) authority() (*authority, error) {
	a := &authority{ca: i.config.CA(), trust: i.config.Trust()}
	if a.ca == nil || a.trust == nil {
		err := status.Error(codes.FailedPrecondition, "this cluster is in no federation and gives no identities")
		return nil, hint.Code(hint.Wrap(err,
			"found one: isthmus cluster init NAME --federation F; or join one: isthmus cluster join --token T"), "not_a_member")
	}
	a.td = mesh.TrustDomainOf(a.trust.Self, a.trust.Federation)
	return a, nil
}

func (a *authority) controlPlane() string {
	return mesh.SPIFFEID{TrustDomain: a.td, Path: mesh.PathControlPlane}.String()
}

// Mint makes the token of one proxy. It is handed over by an inherited file descriptor, never by arguments or
// environment.
func (i *Issuer) Mint(r Record) (*pb.Token, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	a, err := i.authority()
	if err != nil {
		return nil, err
	}
	now := i.config.Now()
	t := &pb.Token{
		Id: random(16), Secret: random(32), AnchorPem: a.trust.AnchorPEM, ControlPlane: a.controlPlane(),
		ExpiresUnix: now.Add(TokenLife).Unix(),
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for id, w := range i.tokens {
		if !now.Before(w.expires) {
			delete(i.tokens, id)
		}
	}
	if len(i.tokens) >= maxTokens {
		return nil, status.Errorf(codes.ResourceExhausted, "make token for %s: %d tokens wait for their proxies already", r, maxTokens)
	}
	i.tokens[string(t.Id)] = waiting{record: r, secret: sha256.Sum256(t.Secret), expires: now.Add(TokenLife)}
	return t, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return b
}

// redeem takes a token out of those that wait: whatever happens next, it is used. Unknown, expired and wrong look
// alike.
func (i *Issuer) redeem(id, secret []byte) (Record, error) {
	hash := sha256.Sum256(secret)
	i.mu.Lock()
	w, ok := i.tokens[string(id)]
	right := subtle.ConstantTimeCompare(hash[:], w.secret[:]) == 1
	if ok && right {
		delete(i.tokens, string(id))
	}
	i.mu.Unlock()
	if !ok || !right || !i.config.Now().Before(w.expires) {
		err := status.Error(codes.Unauthenticated, "the proxy's token is unknown, used or older than a minute")
		return Record{}, hint.Code(hint.Wrap(err,
			"start the proxy again: each start gets a token of its own"), "workload_token_refused")
	}
	return w.record, nil
}

// Caller is the proxy at the other end of a call, verified now: a connection may outlive a membership.
func (i *Issuer) Caller(ctx context.Context) (Record, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Record{}, status.Error(codes.Unauthenticated, "call without a peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return Record{}, status.Error(codes.Unauthenticated, "a proxy's certificate is needed")
	}
	a, err := i.authority()
	if err != nil {
		return Record{}, err
	}
	v := i.config.Verifier()
	if v == nil {
		return Record{}, status.Error(codes.Unauthenticated, "this cluster trusts nobody yet")
	}
	verified, err := v.Verify(info.State.PeerCertificates, anchor.Client)
	if err != nil {
		return Record{}, status.Error(codes.Unauthenticated, err.Error())
	}
	if verified.ID.TrustDomain != a.td {
		return Record{}, status.Errorf(codes.PermissionDenied, "%s is of another cluster", verified.ID)
	}
	_, r, err := RecordOf(verified.Certificate)
	if err != nil {
		return Record{}, status.Error(codes.PermissionDenied, err.Error())
	}
	return r, nil
}

// Issue implements workloadrpc.IdentityServer.
func (i *Issuer) Issue(ctx context.Context, r *pb.IssueRequest) (*pb.IssueResponse, error) {
	key, err := ca.CheckRequest(r.GetCsr())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	a, err := i.authority()
	if err != nil {
		return nil, err
	}
	record, err := i.authenticate(ctx, r)
	if err != nil {
		return nil, err
	}
	now := i.config.Now()
	leaf, err := a.ca.NewLeaf(ca.Leaf{
		ID: mesh.WorkloadID(a.td, record.Namespace, record.Account), Key: key, CommonName: record.Instance, Unit: string(record.Kind),
		Usage: ca.UsageBoth, Life: i.config.Life,
	}, now)
	if err != nil {
		return nil, fmt.Errorf("identity of %s: %w", record, err)
	}
	i.mu.Lock()
	err = i.ledger.add(Entry{Serial: leaf.SerialNumber.Text(16), Record: record, NotAfter: leaf.NotAfter}, now)
	i.mu.Unlock()
	if err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	out := &pb.IssueResponse{
		Chain: [][]byte{leaf.Raw}, AnchorPem: a.trust.AnchorPEM, ControlPlane: a.controlPlane(),
		RenewUnix: now.Add(renewAfter(leaf.NotAfter.Sub(now))).Unix(),
	}
	for _, c := range a.ca.Chain {
		out.Chain = append(out.Chain, c.Raw)
	}
	return out, nil
}

func (i *Issuer) authenticate(ctx context.Context, r *pb.IssueRequest) (Record, error) {
	if len(r.GetTokenId()) > 0 || len(r.GetTokenSecret()) > 0 {
		return i.redeem(r.TokenId, r.TokenSecret)
	}
	record, err := i.Caller(ctx)
	if err != nil {
		return Record{}, err
	}
	if !i.config.Registered(record) {
		return Record{}, status.Errorf(codes.PermissionDenied, "%s is not registered any more: its identity is not renewed", record)
	}
	return record, nil
}

// renewAfter spreads renewals over 50 to 60 % of a life, so that proxies started together do not come back together.
func renewAfter(life time.Duration) time.Duration {
	return life/2 + time.Duration(mathrand.Int64N(int64(life/10)+1))
}

// Leaves are the unexpired certificates this process has issued: whom a rotation of the root has to wait for.
func (i *Issuer) Leaves() []Entry {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ledger.list(i.config.Now())
}

// Package identity gives proxies their identities: the first by a one-use token, later ones by the certificate they
// hold, even for a while after its end (expired.go).
//
// Who a proxy is stands in the token's record, which the control plane makes when a workload is registered; nothing of
// what a proxy asks for reaches its certificate but its key. The certificate then says it all: the SPIFFE ID for other
// workloads, instance and kind for the control plane, so that the scope of an xDS client never rests on what it claims.
package identity

import (
	"context"
	"crypto"
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
	// Registered says why a proxy may not have an identity any more; nil: it may. Renewals end with it. An error that is
	// no refusal, as that nobody knows yet, is of a kind that lets the proxy ask again (codes.Unavailable).
	Registered func(context.Context, Record) error
	// Keep writes a certificate down where it survives this process. It is called before the certificate is given away,
	// which does not happen if it fails: a certificate that nobody knows of could neither be waited for nor be named.
	Keep func(context.Context, Issued) error
	// Life of a certificate; 0: ca.WorkloadLeafLife. Shorter means more signatures and a sooner end of a stolen key.
	Life time.Duration
	Now  func() time.Time // nil: time.Now
	Log  *slog.Logger     // nil: none
}

// Issued is one certificate that was issued.
type Issued struct {
	Serial string // hexadecimal
	Record
	NotAfter time.Time
}

// Issuer is the Identity service. Tokens are in memory: after a restart of the control plane a proxy that still waits
// gets a new token, and one that has a certificate renews it.
type Issuer struct {
	workloadrpc.UnimplementedIdentityServer
	config Config

	mu     sync.Mutex // guards tokens
	tokens map[string]waiting
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
	return &Issuer{config: c, tokens: map[string]waiting{}}
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

// redeem takes a token out of those that wait: it is used, unless the caller puts it back because nothing was issued.
// Unknown, expired and wrong look alike.
func (i *Issuer) redeem(id, secret []byte) (r Record, putBack func(), err error) {
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
		return Record{}, nil, hint.Code(hint.Wrap(err,
			"start the proxy again: each start gets a token of its own"), "workload_token_refused")
	}
	return w.record, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.tokens[string(id)] = w
	}, nil
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
	by, err := i.authenticate(ctx, a, r, key)
	if err != nil {
		return nil, err
	}
	now := i.config.Now()
	leaf, err := a.ca.NewLeaf(ca.Leaf{
		ID: mesh.WorkloadID(a.td, by.record.Namespace, by.record.Account), Key: key,
		CommonName: by.record.Instance, Unit: string(by.record.Kind), Usage: ca.UsageBoth, Life: i.config.Life,
	}, now)
	if err == nil {
		err = i.config.Keep(ctx, Issued{Serial: leaf.SerialNumber.Text(16), Record: by.record, NotAfter: leaf.NotAfter})
	}
	if err != nil {
		by.putBack()
		return nil, fmt.Errorf("identity of %s: %w", by.record, err)
	}
	if by.late > 0 {
		i.config.Log.Info("proxy back with an expired certificate, renewed", "proxy", by.record.String(), "late", by.late.Round(time.Second))
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

// proof is what speaks for a proxy that asks for a certificate.
type proof struct {
	record  Record
	putBack func()        // undoes what the request has used up, if nothing was issued
	late    time.Duration // how long ago the certificate that spoke had expired; 0: it had not, or was a token
}

func (i *Issuer) authenticate(ctx context.Context, a *authority, r *pb.IssueRequest, key crypto.PublicKey) (proof, error) {
	if len(r.GetTokenId()) > 0 || len(r.GetTokenSecret()) > 0 {
		record, putBack, err := i.redeem(r.TokenId, r.TokenSecret)
		return proof{record: record, putBack: putBack}, err
	}
	by := proof{putBack: func() {}}
	var err error
	if len(r.GetExpired()) > 0 {
		by.record, by.late, err = i.returning(a, r.Expired, key)
	} else {
		by.record, err = i.Caller(ctx)
	}
	if err != nil {
		return proof{}, err
	}
	return by, i.config.Registered(ctx, by.record)
}

// renewAfter spreads renewals over 50 to 60 % of a life, so that proxies started together do not come back together.
func renewAfter(life time.Duration) time.Duration {
	return life/2 + time.Duration(mathrand.Int64N(int64(life/10)+1))
}

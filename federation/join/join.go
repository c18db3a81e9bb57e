package join

import (
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/api/rpc/joinrpc"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

const (
	// attemptTimeout bounds one try at one gateway.
	attemptTimeout = 10 * time.Second
	// rounds over all gateways. The token is bound to the request, so a second try after a lost answer is the same
	// admission.
	rounds = 3
	// maxAnswer bounds what the authority may answer, in bytes: a few documents of 1 MiB.
	maxAnswer = 8 << 20
)

// Config of one join.
type Config struct {
	// Token as a person has it. Nothing is done, and nobody is asked, before it is found to be good.
	Token string
	// Self is the name this cluster wants; empty: the token's.
	Self     mesh.ClusterName
	Region   string
	Gateways []string // ip:port, as others reach this cluster
	// Key of this cluster's intermediate, asked for once the token is good; it never leaves.
	Key func() (crypto.Signer, error)
	// Dial opens a plain connection to a gateway; nil: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	Now  func() time.Time // nil: time.Now
}

// Phase is one step and how long it took.
type Phase struct {
	Name string
	Took time.Duration
}

// Result is a membership, verified: nothing in it rests on the authority's word alone.
type Result struct {
	Federation mesh.FederationName
	Cluster    mesh.ClusterName
	Chain      []*x509.Certificate // intermediate, then root
	Documents  []*document.Sealed
	Phases     []Phase
}

// Join redeems a token. It tries the authority's gateways in order, and all of them again while the fault is the
// network's.
func Join(ctx context.Context, c Config) (*Result, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	began := time.Now()
	token, err := Decode(c.Token)
	if err != nil {
		return nil, err
	}
	if err := check(token, c.Self, c.Now()); err != nil {
		return nil, err
	}
	if _, err := document.ParseGateways(c.Gateways); err != nil {
		return nil, err
	}
	if err := document.CheckRegion(c.Region); err != nil {
		return nil, err
	}
	key, err := c.Key()
	if err != nil {
		return nil, err
	}
	csr, err := ca.RequestFor(key)
	if err != nil {
		return nil, err
	}
	prepared := Phase{Name: "prepare", Took: time.Since(began)}
	var failed error
	for round := range rounds {
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), failed)
		case <-time.After(time.Duration(round) * 250 * time.Millisecond):
		}
		for _, gateway := range token.Gateways {
			j := &joining{Config: c, token: token, key: key.Public(), csr: csr, began: time.Now(), phases: []Phase{prepared}}
			result, err := j.try(ctx, gateway)
			if err == nil {
				return result, nil
			}
			err = fmt.Errorf("join federation %q through gateway %s: %w", token.Federation, gateway, err)
			if !again(err) {
				return nil, err
			}
			failed = err
		}
	}
	return nil, hint.Wrap(failed,
		"check that this machine reaches the gateway, that the authority runs, and that no load balancer in between ends TLS")
}

// again tells whether err may be gone at another gateway or a moment later.
func again(err error) bool {
	if hint.CodeOf(err) != "" {
		return false // somebody who knows has answered
	}
	var network *transient
	return errors.As(err, &network)
}

// transient is a fault of the network, or of an authority that is not there now.
type transient struct{ err error }

func (t *transient) Error() string { return t.err.Error() }
func (t *transient) Unwrap() error { return t.err }

// joining is one try at one gateway.
type joining struct {
	Config
	token  *pb.Token
	key    crypto.PublicKey
	csr    []byte
	began  time.Time
	phases []Phase
}

func (j *joining) phase(name string) {
	now := time.Now()
	j.phases = append(j.phases, Phase{Name: name, Took: now.Sub(j.began)})
	j.began = now
}

func (j *joining) try(ctx context.Context, gateway string) (*Result, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	raw, err := j.Dial(ctx, gateway)
	if err != nil {
		return nil, &transient{err}
	}
	defer raw.Close()
	j.phase("connect")

	config := anchor.Base()
	config.ServerName = mesh.JoinSNI(mesh.FederationName(j.token.Federation))
	config.NextProtos = []string{mesh.ALPNJoin}
	config.InsecureSkipVerify = true // the pin says more than any name; VerifyConnection does it all
	config.VerifyConnection = func(s tls.ConnectionState) error { return VerifyAuthority(j.token, s.PeerCertificates, j.Now()) }
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, &transient{fmt.Errorf("TLS handshake: %w", err)}
	}
	state := conn.ConnectionState()
	exp, err := exporter(&state)
	if err != nil {
		return nil, err
	}
	j.phase("handshake")

	request := &pb.AdmitRequest{TokenId: j.token.Id, Csr: j.csr, Nonce: random(nonceLen), Region: j.Region, Gateways: j.Gateways}
	key := deriveKey(j.token.Secret, j.token.Id)
	request.Mac = requestMAC(key, exp, mesh.ClusterName(j.token.Cluster), request)
	response, err := admit(ctx, conn, request)
	if err != nil {
		return nil, j.explain(err)
	}
	if !hmac.Equal(response.Mac, responseMAC(key, exp, request, response)) {
		return nil, errors.New("the answer does not prove that the authority holds the token's secret")
	}
	j.phase("admit")

	result, err := j.verify(response)
	if err != nil {
		return nil, err
	}
	j.phase("verify")
	result.Phases = j.phases
	return result, nil
}

// VerifyAuthority checks the chain a join endpoint presents before anything is said to it: leaf, intermediate and the
// root, whose key the token pins; the leaf has to be the authority's control plane.
func VerifyAuthority(t *pb.Token, chain []*x509.Certificate, now time.Time) error {
	if len(chain) < 2 {
		return errors.New("the server sent no root")
	}
	root := chain[len(chain)-1]
	pin := sha256.Sum256(root.RawSubjectPublicKeyInfo)
	if !slices.ContainsFunc(t.RootPins, func(p []byte) bool { return string(p) == string(pin[:]) }) {
		return fault(CodePin, "the gateway's address may belong to another federation, or a load balancer in between ends TLS: it has to pass TCP through. "+
			"If the federation changed its root, make a new token",
			"the server's root is not the one the token names, so this is not federation %q's authority", t.Federation)
	}
	td := mesh.TrustDomainOf(mesh.ClusterName(t.Authority), mesh.FederationName(t.Federation))
	pem, err := anchor.Make([]*x509.Certificate{root}, []mesh.TrustDomain{td}, now)
	if err != nil {
		return err
	}
	v, err := anchor.NewVerifier(pem, func() time.Time { return now })
	if err != nil {
		return err
	}
	p, err := v.Verify(chain[:len(chain)-1], anchor.Server)
	if err == nil {
		err = anchor.Only(mesh.SPIFFEID{TrustDomain: td, Path: mesh.PathFederation})(p)
	}
	if hint.CodeOf(err) == ca.CodeClock {
		return err
	}
	if err != nil {
		return fault(CodePin, "the token is for another gateway, or this machine's clock is wrong: compare `date` on both sides", "the server is not the authority %q: %w", t.Authority, err)
	}
	return nil
}

// admit makes the one call over conn.
func admit(ctx context.Context, conn net.Conn, request *pb.AdmitRequest) (*pb.AdmitResponse, error) {
	var taken atomic.Bool
	client, err := grpc.NewClient("passthrough:///join",
		// TLS is done already, on this very connection.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if taken.Swap(true) {
				return nil, errors.New("the connection to the authority was lost")
			}
			return conn, nil
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	defer client.Close()
	return joinrpc.NewJoinClient(client).Admit(ctx, request)
}

// explain turns the authority's refusal into words for a person.
func (j *joining) explain(err error) error {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		return &transient{wire.Error(err)}
	case codes.PermissionDenied:
		if reason := wire.Error(err); hint.CodeOf(reason) != "" {
			return reason
		}
		return fault(CodeRefused, "it may have been revoked, or be of an authority that was founded anew; make a new one there: isthmus cluster token create "+j.token.Cluster,
			"the authority does not accept the token for cluster %q", j.token.Cluster)
	}
	return wire.Error(err)
}

// verify checks the answer against the token alone.
func (j *joining) verify(r *pb.AdmitResponse) (*Result, error) {
	chain, err := parse(r.Chain)
	if err != nil {
		return nil, err
	}
	docs, err := document.Chain(r.Documents, j.token.RootPins, document.Version{Term: j.token.Term, Seq: j.token.Seq})
	if err != nil {
		return nil, err
	}
	last := docs[len(docs)-1]
	self := mesh.ClusterName(j.token.Cluster)
	if string(last.Federation) != j.token.Federation {
		return nil, fmt.Errorf("the document is of federation %q, the token of %q", last.Federation, j.token.Federation)
	}
	hash, err := ca.KeyHash(j.key)
	if err != nil {
		return nil, err
	}
	if m, ok := last.Member(self); !ok || m.IntermediateKey != hash {
		return nil, fmt.Errorf("federation document %s does not have cluster %q with its key", last.Version, self)
	}
	id := sha256.Sum256(chain[1].RawSubjectPublicKeyInfo)
	if _, ok := last.Root(id[:]); !ok {
		return nil, fmt.Errorf("federation document %s does not list the root that signed the intermediate", last.Version)
	}
	td := mesh.TrustDomainOf(self, last.Federation)
	if err := ca.CheckIntermediate(chain[0], chain[1], td, j.key, j.Now()); err != nil {
		return nil, err
	}
	return &Result{Federation: last.Federation, Cluster: self, Chain: chain, Documents: docs}, nil
}

// parse reads the chain of an answer: intermediate and root.
func parse(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) != 2 {
		return nil, fmt.Errorf("the answer has %d certificates, want intermediate and root", len(ders))
	}
	var out []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate of the answer: %w", err)
		}
		out = append(out, c)
	}
	return out, nil
}

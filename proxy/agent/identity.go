package agent

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/internal/transport"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
	proxyid "isthmus.dev/isthmus/trust/identity"
	"isthmus.dev/isthmus/trust/store"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// Files of the state folder. A renewal makes a new key: it is written under keyNext, then the identity that goes with it
// replaces the old one, then the key moves to its name. Whatever a crash leaves, one of the two keys fits the identity.
const (
	keyFile      = "key.pem"
	keyNext      = "key-next.pem"
	identityFile = "identity.json"
)

// ownSecret is the name of the SDS secret that has the proxy's own certificate and key.
const ownSecret = "default"

// issueTimeout bounds one request for a certificate.
const issueTimeout = 10 * time.Second

// identity is a key with what goes with it; immutable.
type identity struct {
	key          crypto.Signer
	chain        []*x509.Certificate // leaf first, without the root
	anchorPEM    []byte
	verifier     *anchor.Verifier
	controlPlane mesh.SPIFFEID
	renew        time.Time
}

// identityJSON is identityFile.
type identityJSON struct {
	ChainPEM     string    `json:"chain"`
	AnchorPEM    string    `json:"anchor"`
	ControlPlane string    `json:"controlPlane"`
	Renew        time.Time `json:"renew"`
}

// identities owns the proxy's identity over its renewals.
type identities struct {
	cfg     *Config
	sockets sockets
	state   *store.Dir
	wall    func() time.Time         // time.Now, but in tests
	current atomic.Pointer[identity] // written by obtain, then by renew
	rotated chan struct{}            // told of every renewal; made by newHub
}

// obtain takes the identity from disk, or else gets one by the token. It is the only thing that waits for the control
// plane, and only for a proxy that never had an identity.
func (s *identities) obtain(ctx context.Context) error {
	token, err := readToken(s.cfg.Token)
	if err != nil {
		return err
	}
	kept, err := s.load()
	switch {
	case err == nil && (token == nil || s.serves(kept, token)):
		s.current.Store(kept)
		return nil
	case token == nil && errors.Is(err, fs.ErrNotExist):
		return hint.Wrap(hint.Code(errors.New("no identity on disk and no token"), "no_identity"),
			"start the proxy with isthmus workload run, which hands it a token")
	case token == nil:
		return hint.Wrap(hint.Code(fmt.Errorf("the identity on disk cannot be used: %w", err), "no_identity"),
			"start the proxy with isthmus workload run, which hands it a new token")
	}
	return s.first(ctx, token)
}

func readToken(data []byte) (*workload.Token, error) {
	if len(data) == 0 {
		return nil, nil
	}
	token := &workload.Token{}
	if err := proto.Unmarshal(data, token); err != nil || len(token.Id) == 0 || len(token.AnchorPem) == 0 {
		return nil, hint.Wrap(hint.Code(errors.New("the token is cut short or damaged"), "token_damaged"),
			"start the proxy with isthmus workload run, which hands it a token")
	}
	return token, nil
}

// serves tells whether an identity on disk belongs to the control plane that made the token: after a cluster was made anew
// in the same folder it does not.
func (s *identities) serves(id *identity, token *workload.Token) bool {
	if id.controlPlane.String() != token.ControlPlane {
		return false
	}
	v, err := anchor.NewVerifier(token.AnchorPem, s.wall)
	if err != nil {
		return false
	}
	_, err = v.Verify(id.chain, anchor.Client)
	return err == nil
}

// first exchanges the token for a certificate, again and again until the token expires.
func (s *identities) first(ctx context.Context, token *workload.Token) error {
	expired := func(cause error) error {
		err := errors.New("the token has expired")
		if cause != nil {
			err = fmt.Errorf("the token has expired, and until then: %w", cause)
		}
		return hint.Wrap(hint.Code(err, "token_expired"), "tokens live 60 s; start the proxy again for a new one, with the control plane running")
	}
	deadline := time.Unix(token.ExpiresUnix, 0)
	ask := &identity{anchorPEM: token.AnchorPem}
	var err error
	if ask.verifier, err = anchor.NewVerifier(token.AnchorPem, s.wall); err != nil {
		return fmt.Errorf("token: %w", err)
	}
	if ask.controlPlane, err = mesh.ParseSPIFFEID(token.ControlPlane); err != nil {
		return fmt.Errorf("token: %w", err)
	}
	var last error
	wait := backoff{least: 50 * time.Millisecond, most: time.Second}
	for s.wall().Before(deadline) {
		id, err := s.issue(ctx, ask, &workload.IssueRequest{TokenId: token.Id, TokenSecret: token.Secret})
		if err == nil {
			return s.adopt(id)
		}
		if refused(err) {
			return explain(err)
		}
		last = err
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait.next()):
		}
	}
	return expired(last)
}

// refused tells whether asking again is useless.
func refused(err error) bool {
	switch kindOf(err) {
	case codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.FailedPrecondition, codes.NotFound, codes.AlreadyExists:
		return true
	}
	return false
}

// kindOf is the kind of what a call returned, whether or not the control plane said more about it.
func kindOf(err error) codes.Code {
	var failure *wire.Failure
	if errors.As(err, &failure) {
		return failure.Kind
	}
	return status.Code(err)
}

// explain adds what to do about a refusal where the control plane did not say.
func explain(err error) error {
	if hint.Of(err) != "" {
		return err
	}
	if kindOf(err) == codes.FailedPrecondition {
		return hint.Wrap(hint.Code(err, "no_federation"), "found a federation with isthmus cluster init, or join one with isthmus cluster join")
	}
	return hint.Wrap(hint.Code(err, "token_refused"), "a token is good for one certificate and 60 s; start the proxy again for a new one")
}

// renewOnce gets a certificate by the one there is. After its end no connection can show that one any more, so it goes
// into the request, with a proof that its key is here; a few minutes before, too, for the clock of the control plane may
// be ahead. The key stays the same then.
func (s *identities) renewOnce(ctx context.Context) error {
	as := s.current.Load()
	req := &workload.IssueRequest{}
	late := s.wall().Sub(as.chain[0].NotAfter)
	if late > -ca.Backdate {
		for _, c := range as.chain {
			req.Expired = append(req.Expired, c.Raw)
		}
	}
	id, err := s.issue(ctx, as, req)
	if err != nil {
		return err
	}
	if err := s.adopt(id); err != nil {
		return err
	}
	if late > 0 {
		s.cfg.Log.Info("certificate renewed after its end", "late", late.Round(time.Second))
	}
	return nil
}

// issue asks for a certificate, as the identity as: for a new key, but for the same one in exchange for an expired
// certificate.
func (s *identities) issue(ctx context.Context, as *identity, req *workload.IssueRequest) (*identity, error) {
	key, err := s.keyFor(as, req)
	if err != nil {
		return nil, err
	}
	if len(req.Expired) > 0 {
		as = &identity{anchorPEM: as.anchorPEM, verifier: as.verifier, controlPlane: as.controlPlane} // anonymous
	}
	if req.Csr, err = ca.RequestFor(key); err != nil {
		return nil, err
	}
	conn, err := dial(s.sockets.workload, func() *identity { return as })
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	resp, err := workloadrpc.NewIdentityClient(conn).Issue(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("ask the control plane at %s for a certificate: %w", s.sockets.workload, err)
	}
	id := &identity{key: key, anchorPEM: resp.AnchorPem, renew: time.Unix(resp.RenewUnix, 0)}
	for _, der := range resp.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("issued certificate: %w", err)
		}
		id.chain = append(id.chain, cert)
	}
	if id.controlPlane, err = mesh.ParseSPIFFEID(resp.ControlPlane); err != nil {
		return nil, fmt.Errorf("issued identity: control plane: %w", err)
	}
	return id, s.check(id, 0)
}

func (s *identities) keyFor(as *identity, req *workload.IssueRequest) (crypto.Signer, error) {
	if len(req.Expired) > 0 {
		return as.key, nil
	}
	return ca.NewKey()
}

// check verifies that an identity is complete, this proxy's and valid now, or was no longer than late ago.
func (s *identities) check(id *identity, late time.Duration) (err error) {
	if id.verifier, err = anchor.NewVerifier(id.anchorPEM, s.wall); err != nil {
		return err
	}
	if _, _, err := id.verifier.VerifyExpired(id.chain, anchor.Client, late); err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	leaf := id.chain[0]
	if public, ok := id.key.Public().(*ecdsa.PublicKey); !ok || !public.Equal(leaf.PublicKey) {
		return errors.New("own certificate is for another key")
	}
	_, record, err := proxyid.RecordOf(leaf)
	if err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	if record.ProxyID != s.cfg.proxy() {
		return fmt.Errorf("own certificate is for %s, not for %s", record, s.cfg.proxy())
	}
	return nil
}

// adopt writes an identity to disk and uses it from now on.
func (s *identities) adopt(id *identity) error {
	if err := s.state.WriteKey(keyNext, id.key); err != nil {
		return fmt.Errorf("keep the new key: %w", err)
	}
	text, err := json.Marshal(identityJSON{
		ChainPEM: string(chainPEM(id.chain)), AnchorPEM: string(id.anchorPEM), ControlPlane: id.controlPlane.String(), Renew: id.renew.UTC(),
	})
	if err == nil {
		err = s.state.Write(identityFile, text)
	}
	if err == nil {
		err = s.state.WriteKey(keyFile, id.key)
	}
	if err == nil {
		err = s.state.Remove(keyNext)
	}
	if err != nil {
		return fmt.Errorf("keep the new identity: %w", err)
	}
	s.current.Store(id)
	return nil
}

// load reads the identity from disk; fs.ErrNotExist when there never was one. One that has expired is taken as long as it
// can be renewed.
func (s *identities) load() (*identity, error) {
	text, err := s.state.Read(identityFile)
	if err != nil {
		return nil, err
	}
	var j identityJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, fmt.Errorf("%s: %w", s.state.Path(identityFile), err)
	}
	id := &identity{anchorPEM: []byte(j.AnchorPEM), renew: j.Renew}
	if id.controlPlane, err = mesh.ParseSPIFFEID(j.ControlPlane); err != nil {
		return nil, fmt.Errorf("%s: %w", s.state.Path(identityFile), err)
	}
	for rest := []byte(j.ChainPEM); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.state.Path(identityFile), err)
		}
		id.chain = append(id.chain, cert)
	}
	var failure error
	for _, name := range []string{keyFile, keyNext} {
		if id.key, err = s.state.ReadKey(name); err == nil {
			err = s.check(id, proxyid.MaxLate)
		}
		if err == nil {
			return id, nil
		}
		failure = errors.Join(failure, err)
	}
	return nil, fmt.Errorf("%s: %w", s.state.Path(identityFile), failure)
}

func chainPEM(chain []*x509.Certificate) []byte {
	var out []byte
	for _, c := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// secret is the identity as Envoy takes it. It exists in this process, in Envoy and in the state folder, nowhere else.
func (id *identity) secret() (xds.Resource, error) {
	der, err := x509.MarshalPKCS8PrivateKey(id.key)
	if err != nil {
		return xds.Resource{}, fmt.Errorf("encode own key: %w", err)
	}
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	return xds.New(ownSecret, &tlsv3.Secret{Name: ownSecret, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(chainPEM(id.chain)),
		PrivateKey:       inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}}})
}

// dial prepares a connection to the control plane as the identity that is current at the handshake. One without a key is
// anonymous: it only knows whom to trust.
func dial(at transport.Address, current func() *identity) (*grpc.ClientConn, error) {
	id := current()
	end := anchor.TLS{
		Verifier: func() *anchor.Verifier { return current().verifier },
		Allow:    anchor.Only(id.controlPlane),
	}
	if id.key != nil {
		end.Certificate = func() (*tls.Certificate, error) {
			id := current()
			cert := &tls.Certificate{PrivateKey: id.key, Leaf: id.chain[0]}
			for _, c := range id.chain {
				cert.Certificate = append(cert.Certificate, c.Raw)
			}
			return cert, nil
		}
	}
	conn, err := grpc.NewClient("passthrough:///"+at.String(), append(wire.ClientOptions(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return at.Dial(ctx) }),
		grpc.WithAuthority("controlplane"), grpc.WithNoProxy(),
		grpc.WithTransportCredentials(credentials.NewTLS(end.Client())),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(stream.MaxMessage)))...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", at, err)
	}
	return conn, nil
}

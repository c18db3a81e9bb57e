package identity

import (
	"crypto"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

// MaxLate is how long after its end a certificate still renews itself. Longer lets proxies outlast a longer absence of
// their control plane, and a stolen key be of use for longer.
const MaxLate = 7 * 24 * time.Hour

// RetryLate is the longest pause between two attempts of a proxy to renew a certificate that is about to expire, or has.
// A control plane that was away leaves its proxies that long to come back.
const RetryLate = 30 * time.Second

// returning tells who a proxy is whose certificate has expired while this control plane was away, and how long ago. No
// connection takes such a certificate, so it comes in the request, and the request is signed by its key: what is issued
// is of use to the holder of that key alone, however old the request is. Of the certificate everything else has to be as
// for any other of our proxies.
func (i *Issuer) returning(a *authority, expired [][]byte, key crypto.PublicKey) (Record, time.Duration, error) {
	refuse := func(kind codes.Code, err error) (Record, time.Duration, error) {
		err = hint.Code(status.Errorf(kind, "an expired certificate is not renewed: %v", err), "identity_expired")
		return Record{}, 0, hint.Wrap(err, "start the proxy again for a new identity: isthmus workload run does")
	}
	chain, err := anchor.ParseChain(expired)
	if err != nil {
		return refuse(codes.InvalidArgument, err)
	}
	v := i.config.Verifier()
	if v == nil {
		return refuse(codes.Unauthenticated, fmt.Errorf("this cluster trusts nobody yet"))
	}
	verified, late, err := v.VerifyExpired(chain, anchor.Client, MaxLate)
	if err != nil {
		return refuse(codes.Unauthenticated, err)
	}
	leaf := verified.Certificate
	if verified.ID.TrustDomain != a.td {
		return refuse(codes.PermissionDenied, fmt.Errorf("%s is of another cluster", verified.ID))
	}
	// The intermediate keeps its key when it is renewed, so this is about one of a former membership.
	if err := leaf.CheckSignatureFrom(a.ca.Certificate); err != nil {
		return refuse(codes.PermissionDenied, fmt.Errorf("certificate of %s is by an issuer that is not this cluster's any more", verified.ID))
	}
	have, err := ca.KeyHash(leaf.PublicKey)
	if err != nil {
		return refuse(codes.InvalidArgument, err)
	}
	if asked, err := ca.KeyHash(key); err != nil || asked != have {
		return refuse(codes.PermissionDenied, fmt.Errorf("the request is not signed by the key of the certificate of %s", verified.ID))
	}
	_, r, err := RecordOf(leaf)
	if err != nil {
		return refuse(codes.PermissionDenied, err)
	}
	return r, late, nil
}

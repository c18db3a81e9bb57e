package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
)

// MaxCSR bounds a certificate request before it is decoded, in bytes. RSA 4096 needs about 1.2 kB.
const MaxCSR = 3 << 10

// RequestFor makes the certificate request for a key. It asks for no name: names are the issuer's to give.
func RequestFor(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return der, nil
}

// CheckRequest returns the key a request proves possession of. Everything else the request asks for (names, CA, usages)
// is ignored: it never reaches a certificate.
func CheckRequest(der []byte) (crypto.PublicKey, error) {
	if len(der) > MaxCSR {
		return nil, fmt.Errorf("certificate request has %d bytes, %d at most", len(der), MaxCSR)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	// The kind of key first: verifying with an absurd one would cost more than it is worth.
	if err := CheckKey(req.PublicKey); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request does not prove possession of its key: %w", err)
	}
	return req.PublicKey, nil
}

// CheckKey accepts the kinds of key that both Go's and Envoy's verifiers were measured to take in every place of a
// chain: P-256, P-384, and RSA of 2048 to 8192 bits.
func CheckKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("key on curve %s: only P-256, P-384 and RSA of 2048 bits or more are taken", k.Curve.Params().Name)
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("RSA key of %d bits: 2048 to 8192 are taken", n)
		}
		return nil
	}
	return fmt.Errorf("key of type %T: only P-256, P-384 and RSA of 2048 bits or more are taken", pub)
}

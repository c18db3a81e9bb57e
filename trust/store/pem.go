package store

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
)

// MaxCertificates bounds one PEM file.
const MaxCertificates = 16

// WriteKey stores a private key as PKCS#8, PEM (RFC 5958).
func (d *Dir) WriteKey(name string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("write key %s: %w", d.Path(name), err)
	}
	return d.Write(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// ReadKey reads what WriteKey wrote.
func (d *Dir) ReadKey(name string) (crypto.Signer, error) {
	data, err := d.Read(name)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("read key %s: not one PEM block of type PRIVATE KEY", d.Path(name))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", d.Path(name), err)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read key %s: is a %T, not an ECDSA key", d.Path(name), key)
	}
	return signer, nil
}

// WriteCertificates stores certificates in order, PEM.
func (d *Dir) WriteCertificates(name string, certs []*x509.Certificate) error {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return d.Write(name, out)
}

// ReadCertificates reads what WriteCertificates wrote: at least one.
func (d *Dir) ReadCertificates(name string) ([]*x509.Certificate, error) {
	data, err := d.Read(name)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for len(bytes.TrimSpace(data)) > 0 {
		block, rest := pem.Decode(data)
		if block == nil || block.Type != "CERTIFICATE" || len(certs) == MaxCertificates {
			return nil, fmt.Errorf("read certificates %s: not 1 to %d PEM blocks of type CERTIFICATE", d.Path(name), MaxCertificates)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read certificates %s: %w", d.Path(name), err)
		}
		certs, data = append(certs, c), rest
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("read certificates %s: the file is empty", d.Path(name))
	}
	return certs, nil
}

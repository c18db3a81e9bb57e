package cli

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"time"

	"isthmus.dev/isthmus/internal/cli/output"
)

// maxCertificates bounds those of one secret that are shown.
const maxCertificates = 64

func secretTable(p *output.Printer, d *dump, now time.Time) {
	grid := output.NewGrid("NAME", "TYPE", "VALID", "SUBJECT", "SERIAL", "NOT AFTER", "STATE")
	for _, it := range d.items("secrets") {
		kind, found := certificatesOf(it.body)
		if len(found) == 0 {
			grid.Cells(output.Cell{Text: it.name}, output.Cell{Text: kind}, output.Cell{}, output.Cell{}, output.Cell{}, output.Cell{}, stateCell(it.state))
		}
		for i, c := range found {
			valid := output.Cell{Text: "yes", Color: output.Green}
			switch {
			case now.After(c.NotAfter):
				valid = output.Cell{Text: "expired", Color: output.Red}
			case now.Before(c.NotBefore):
				valid = output.Cell{Text: "not yet", Color: output.Red}
			}
			role := kind
			if kind == "certificate" && i > 0 {
				role = "intermediate"
			}
			grid.Cells(output.Cell{Text: it.name}, output.Cell{Text: role}, valid, output.Cell{Text: subjectOf(c)}, output.Cell{Text: fmt.Sprintf("%x", c.SerialNumber)},
				output.Cell{Text: c.NotAfter.UTC().Format(time.RFC3339)}, stateCell(it.state))
		}
	}
	grid.Print(p, "no secrets")
}

// certificatesOf gives what a secret is and the certificates in it, leaf first; those that cannot be read are left out.
func certificatesOf(secret map[string]any) (kind string, found []*x509.Certificate) {
	for _, of := range []struct{ field, part, kind string }{
		{"tls_certificate", "certificate_chain", "certificate"}, {"validation_context", "trusted_ca", "anchor"},
	} {
		if part := field(secret, of.field); part != nil {
			return of.kind, parsePEM(bytesOf(field(part, of.part)))
		}
	}
	for _, other := range []string{"session_ticket_keys", "generic_secret"} {
		if field(secret, other) != nil {
			return other, nil
		}
	}
	return "", nil
}

// bytesOf reads a source of data of Envoy's, as far as it is in the dump itself.
func bytesOf(source any) []byte {
	if s := text(source, "inline_string"); s != "" {
		return []byte(s)
	}
	b, _ := base64.StdEncoding.DecodeString(text(source, "inline_bytes")) // damaged: there is nothing to show
	return b
}

func parsePEM(data []byte) (found []*x509.Certificate) {
	for len(found) < maxCertificates {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			found = append(found, c)
		}
	}
	return found
}

// subjectOf is whose certificate it is: its SPIFFE ID, else its name.
func subjectOf(c *x509.Certificate) string {
	if len(c.URIs) > 0 {
		return c.URIs[0].String()
	}
	return c.Subject.String()
}

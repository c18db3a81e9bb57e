package ca

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"isthmus.dev/isthmus/internal/hint"
)

// CodeClock is the code of an error that says that a certificate is not valid at this moment.
const CodeClock = "clock"

// ExplainClock gives err with both times and what to do where it says that a certificate is expired or not valid yet:
// for certificates that are renewed at half their life that is nearly always a wrong clock, here or at the other end.
func ExplainClock(err error, now time.Time) error {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	if !ok || invalid.Reason != x509.Expired || invalid.Cert == nil {
		return err
	}
	from, until := invalid.Cert.NotBefore, invalid.Cert.NotAfter
	err = fmt.Errorf("a certificate is valid from %s to %s, and the clock here says %s", stamp(from), stamp(until), stamp(now))
	return hint.Wrap(hint.Code(err, CodeClock),
		"compare `date -u` on both machines: they have to agree within 5 minutes; if they do, the certificate was not renewed in time, see the log of the cluster it is of")
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

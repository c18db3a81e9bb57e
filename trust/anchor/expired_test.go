package anchor_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

// TestVerifyExpired: an expired leaf is taken for so long and no longer, under anchors that may be younger than its end
// but must not have ended themselves; everybody else still refuses it.
func TestVerifyExpired(t *testing.T) {
	start := time.Now()
	key, err := ca.NewKey()
	must(t, err)
	root, err := ca.NewRoot("fed.test", key, start)
	must(t, err)
	const td = mesh.TrustDomain("west.fed.test")
	cert, err := root.NewIntermediate(td, key.Public(), start)
	must(t, err)
	leaf, err := (&ca.Issuer{Certificate: cert, Signer: key}).NewLeaf(ca.Leaf{
		ID: mesh.WorkloadID(td, "shop", "reviews"), Key: key.Public(), Usage: ca.UsageBoth, Life: time.Hour,
	}, start)
	must(t, err)
	chain := []*x509.Certificate{leaf, cert}
	const most = 24 * time.Hour
	tests := []struct {
		why    string
		after  time.Duration // since the start
		made   time.Duration // of the anchors
		usage  anchor.Usage
		late   time.Duration
		refuse string
	}{
		{"valid", 30 * time.Minute, 0, anchor.Client, 0, ""},
		{"just ended", time.Hour + time.Second, 0, anchor.Client, time.Second, ""},
		{"under anchors of today", 20 * time.Hour, 19 * time.Hour, anchor.Client, 19 * time.Hour, ""},
		{"at the bound", time.Hour + most, 0, anchor.Client, most, ""},
		{"beyond it", time.Hour + most + time.Second, 0, anchor.Client, 0, "24h0m0s at most"},
		{"for another use", 20 * time.Hour, 0, anchor.Signing, 0, "not meant for this use"},
		{"not valid yet", -time.Hour, -2 * time.Hour, anchor.Client, 0, "the clock here says"},
	}
	for _, test := range tests {
		pem, err := anchor.Make([]*x509.Certificate{root.Certificate}, []mesh.TrustDomain{td}, start.Add(test.made))
		must(t, err)
		// Certificates count whole seconds.
		v, err := anchor.NewVerifier(pem, func() time.Time { return leaf.NotAfter.Add(test.after - time.Hour) })
		must(t, err)
		p, late, err := v.VerifyExpired(chain, test.usage, most)
		if test.refuse != "" {
			if err == nil || !strings.Contains(err.Error(), test.refuse) {
				t.Errorf("%s: %v, want %q", test.why, err, test.refuse)
			}
		} else if err != nil || late != test.late || p.Certificate != leaf {
			t.Errorf("%s: late %v, %v; want %v", test.why, late, err, test.late)
		}
		if _, err := v.Verify(chain, anchor.Client); (err == nil) != (test.late == 0 && test.refuse == "") && test.usage == anchor.Client {
			t.Errorf("%s: Verify says %v", test.why, err)
		}
	}
	old := *root.Certificate
	old.NotAfter = start.Add(2 * time.Hour)
	pem, err := anchor.Make([]*x509.Certificate{&old}, []mesh.TrustDomain{td}, start)
	must(t, err)
	v, err := anchor.NewVerifier(pem, func() time.Time { return start.Add(3 * time.Hour) })
	must(t, err)
	if _, _, err := v.VerifyExpired(chain, anchor.Client, most); err == nil || !strings.Contains(err.Error(), "anchor has expired") {
		t.Errorf("under an anchor that has ended since: %v", err)
	}
}

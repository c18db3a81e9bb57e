package mesh

import (
	"strings"
	"testing"
)

// FuzzParseSPIFFEID: what is taken is exactly what it is written as again, in lower case.
func FuzzParseSPIFFEID(f *testing.F) {
	for _, s := range []string{
		"spiffe://west.fed.test/ns/shop/sa/reviews", "spiffe://west.fed.test" + PathFederation, "spiffe://WEST.fed.test:1/ns/a/sa/b", "https://west.fed.test/",
		"spiffe://" + strings.Repeat("a.", 900) + "a/ns/shop/sa/" + strings.Repeat("b.", 100) + "b", "spiffe://" + strings.Repeat("a", 64<<10),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseSPIFFEID(s)
		if err != nil {
			return
		}
		if id.String() != s || strings.ToLower(string(id.TrustDomain)) != string(id.TrustDomain) || strings.ContainsAny(string(id.TrustDomain), ":@/?#") {
			t.Errorf("%q became %q", s, id)
		}
	})
}

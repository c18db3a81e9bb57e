// Package xfcc reads who called from the header x-forwarded-client-cert that the sidecar writes.
//
// The form is Envoy's (HTTP header manipulation, "x-forwarded-client-cert"): elements separated by commas, one a
// proxy that the request passed; in an element key=value pairs separated by semicolons; a value that holds one of
// `,;=` is put in double quotes, a quote inside it escaped by a backslash; keys are case-insensitive.
package xfcc

import "strings"

// Header is the header's name as it is spelt in HTTP/2 and in gRPC metadata.
const Header = "x-forwarded-client-cert"

// scheme begins every SPIFFE id (SPIFFE-ID, section 2).
const scheme = "spiffe://"

// pair is one key=value of an element, the value without its quotes.
type pair struct{ key, value string }

// Peer returns the SPIFFE id of the direct caller: the URI of the last element, which is the one that the nearest
// proxy added. It is "" where the header is absent or malformed, and where that element names no SPIFFE id or
// several: an X.509-SVID has exactly one URI (X509-SVID, section 2), so anything else identifies nobody.
//
// Each argument is one line of the header, in order; HTTP joins them with commas (RFC 9110, section 5.3).
func Peer(lines ...string) string {
	pairs, ok := lastElement(strings.Join(lines, ","))
	if !ok {
		return ""
	}
	id := ""
	for _, p := range pairs {
		if !strings.EqualFold(p.key, "URI") {
			continue
		}
		if id != "" || !strings.HasPrefix(p.value, scheme) || len(p.value) == len(scheme) {
			return ""
		}
		id = p.value
	}
	return id
}

// lastElement parses all of text, so that a quote opened in an earlier element cannot swallow a separator unseen, and
// returns the pairs of its last element.
func lastElement(text string) ([]pair, bool) {
	var pairs []pair
	for {
		key, rest, found := strings.Cut(text, "=")
		key = strings.TrimSpace(key)
		if !found || key == "" || strings.ContainsAny(key, `,;"`) {
			return nil, false
		}
		value, rest, ok := cutValue(rest)
		if !ok {
			return nil, false
		}
		pairs = append(pairs, pair{key, value})
		switch {
		case rest == "":
			return pairs, true
		case rest[0] == ',':
			pairs = nil
		}
		text = rest[1:]
	}
}

// cutValue takes one value off the front of text; rest is empty or begins with the separator that ended it.
func cutValue(text string) (value, rest string, ok bool) {
	if !strings.HasPrefix(text, `"`) {
		end := strings.IndexAny(text, `,;"`)
		switch {
		case end < 0:
			return strings.TrimSpace(text), "", true
		case text[end] == '"':
			return "", "", false
		}
		return strings.TrimSpace(text[:end]), text[end:], true
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch c := text[i]; c {
		case '\\':
			if i++; i == len(text) {
				return "", "", false
			}
			b.WriteByte(text[i])
		case '"':
			rest = strings.TrimLeft(text[i+1:], " ")
			if rest != "" && rest[0] != ',' && rest[0] != ';' {
				return "", "", false
			}
			return b.String(), rest, true
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

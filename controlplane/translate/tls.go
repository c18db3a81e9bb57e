package translate

import (
	"regexp"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// Secrets a sidecar uses. OwnCertificate is made by the agent and never leaves its pod.
const (
	OwnCertificate = "default"
	// RootSecret verifies clients: the anchor and the whole shape of a member's workload identity.
	RootSecret = "ROOTCA"
	// AnchorSecret is the anchor alone. Envoy joins the SAN matchers of a secret with those of the context that refers
	// to it by OR, so a context that names exact identities must not refer to RootSecret.
	AnchorSecret = "ANCHOR"
)

// nobody is a server identity that no certificate has: an empty list of matchers would accept every identity.
const nobody = "spiffe://nobody.invalid/"

// Parts of an identity's path, as mesh.ParseSPIFFEID has them (upper case, ports, users and missing paths pass X.509
// name constraints, so the whole string is matched).
const workloadPath = `/ns/[a-z0-9]([-a-z0-9]*[a-z0-9])?/sa/[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*`

// anyLabel is the name of any cluster.
const anyLabel = `[a-z0-9]([-a-z0-9]*[a-z0-9])?`

// alpnHTTP is what the sidecars' HTTP clients offer at the handshake; their TCP clients offer nothing.
const alpnHTTP = "h2"

// handshakeTimeout bounds how long a connection may take until its handshake is complete. A stranger's never is.
const handshakeTimeout = 5 * time.Second

// secrets adds what a sidecar verifies its peers by.
func (v *view) secrets(out Resources) {
	var members []mesh.ClusterName
	for _, m := range v.trust.Members {
		members = append(members, m.Name)
	}
	anchor := &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: v.trust.AnchorPEM}}
	add := func(name string, sans []*tlsv3.SubjectAltNameMatcher) {
		out.add(xds.SecretType, name, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: anchor, MatchTypedSubjectAltNames: sans},
		}})
	}
	add(RootSecret, []*tlsv3.SubjectAltNameMatcher{uriMatcher(regex(v.identityRegex(members)))})
	add(AnchorSecret, nil)
}

// identityRegex matches the workload identities of these clusters, whole; none for no cluster. Its program grows with
// the federation, far beyond the 100 instructions Envoy allows by default: the bootstrap of every proxy raises
// re2.max_program_size.error_level to MaxRegexProgram.
func (v *view) identityRegex(clusters []mesh.ClusterName) string {
	var hosts []string
	for _, c := range clusters {
		hosts = append(hosts, regexp.QuoteMeta(string(c)))
	}
	return `spiffe://(` + strings.Join(hosts, "|") + `)\.` + regexp.QuoteMeta(string(v.trust.Federation)) + workloadPath
}

// memberRegex matches the workload identities of any cluster below the federation's name, whole. Which of them are members
// is the anchor's to say.
func (v *view) memberRegex() string {
	return `spiffe://` + anyLabel + `\.` + regexp.QuoteMeta(string(v.trust.Federation)) + workloadPath
}

// MaxRegexProgram is the size of RE2 programs that proxies have to accept: a thousand members with names of 63 bytes,
// ten times over.
const MaxRegexProgram = 1_000_000

func regex(re string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: re}}}
}

func exact(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

func uriMatcher(m *matcherv3.StringMatcher) *tlsv3.SubjectAltNameMatcher {
	return &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: m}
}

func sds(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: ads()}
}

// commonContext is TLS 1.3 and nothing else, with the proxy's own certificate. Envoy's default maximum for a client
// is TLS 1.2, so both bounds are set.
func commonContext(http bool) *tlsv3.CommonTlsContext {
	c := &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{sds(OwnCertificate)},
	}
	if http {
		c.AlpnProtocols = []string{alpnHTTP}
	}
	return c
}

// combined verifies by a secret and by SAN matchers of its own; one of the matchers has to hold.
func combined(secret string, sans []*tlsv3.SubjectAltNameMatcher) *tlsv3.CommonTlsContext_CombinedValidationContext {
	return &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: sans},
			ValidationContextSdsSecretConfig: sds(secret),
		},
	}
}

// upstreamContext is mTLS to a sidecar that has one of the identities. It asks for no server name yet.
func upstreamContext(identities []string, http bool) *tlsv3.UpstreamTlsContext {
	if len(identities) == 0 {
		identities = []string{nobody}
	}
	var sans []*tlsv3.SubjectAltNameMatcher
	for _, id := range identities {
		sans = append(sans, uriMatcher(exact(id)))
	}
	common := commonContext(http)
	common.ValidationContextType = combined(AnchorSecret, sans)
	return &tlsv3.UpstreamTlsContext{CommonTlsContext: common, MaxSessionKeys: u32(0)}
}

// downstreamContext demands a client certificate and resumes no session: a resumed one would let an expired
// certificate back in.
func downstreamContext(common *tlsv3.CommonTlsContext) *tlsv3.DownstreamTlsContext {
	return &tlsv3.DownstreamTlsContext{
		CommonTlsContext:                 common,
		RequireClientCertificate:         yes(),
		DisableStatefulSessionResumption: true,
		SessionTicketKeysType:            &tlsv3.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true},
	}
}

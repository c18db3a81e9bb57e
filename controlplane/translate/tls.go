package translate

import (
	"regexp"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
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

// tlsSocket is Envoy's transport socket for TLS.
const tlsSocket = "envoy.transport_sockets.tls"

// Numbers of the fields that are filled in when a transport socket is linked, and what does not depend on the peer.
var (
	socket   = struct{ name, config fieldNumber }{number(&corev3.TransportSocket{}, "name"), number(&corev3.TransportSocket{}, "typed_config")}
	packed   = struct{ url, value fieldNumber }{number(&anypb.Any{}, "type_url"), number(&anypb.Any{}, "value")}
	upstream = struct{ common, sni fieldNumber }{number(&tlsv3.UpstreamTlsContext{}, "common_tls_context"), number(&tlsv3.UpstreamTlsContext{}, "sni")}
	combine  = number(&tlsv3.CommonTlsContext{}, "combined_validation_context")
	verify   = number(&tlsv3.CommonTlsContext_CombinedCertificateValidationContext{}, "default_validation_context")
	sanList  = number(&tlsv3.CertificateValidationContext{}, "match_typed_subject_alt_names")
	matcher  = number(&tlsv3.SubjectAltNameMatcher{}, "matcher")
	same     = number(&matcherv3.StringMatcher{}, "exact")

	uriName     = rule.Encode(&tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI})
	byAnchor    = rule.Encode(&tlsv3.CommonTlsContext_CombinedCertificateValidationContext{ValidationContextSdsSecretConfig: sds(AnchorSecret)})
	commonHTTP  = rule.Encode(commonContext(true))
	commonTCP   = rule.Encode(commonContext(false))
	noSessions  = rule.Encode(&tlsv3.UpstreamTlsContext{MaxSessionKeys: u32(0)})
	hostAsSNI   = rule.Encode(&tlsv3.UpstreamTlsContext{MaxSessionKeys: u32(0), AutoHostSni: true})
	upstreamURL = "type.googleapis.com/" + string(proto.MessageName(&tlsv3.UpstreamTlsContext{}))
)

// upstreamSocket appends a transport socket that is mTLS to a sidecar with one of the identities. It asks for the server
// name, or for that of the endpoint where it is empty.
func (l *linker) upstreamSocket(identities []string, http bool, sni string) {
	common, rest := commonTCP, noSessions
	if http {
		common = commonHTTP
	}
	if sni == "" {
		rest = hostAsSNI
	}
	l.text(socket.name, tlsSocket)
	config := l.open(socket.config)
	l.text(packed.url, upstreamURL)
	context := l.open(packed.value)
	at := l.open(upstream.common)
	l.fragment(common)
	combined := l.open(combine)
	own := l.open(verify)
	if len(identities) == 0 {
		l.identity(nobody)
	}
	for _, id := range identities {
		l.identity(id)
	}
	l.close(own)
	l.fragment(byAnchor)
	l.close(combined)
	l.close(at)
	l.text(upstream.sni, sni)
	l.fragment(rest)
	l.close(context)
	l.close(config)
}

// identity appends a matcher of exactly this URI.
func (l *linker) identity(id string) {
	at := l.open(sanList)
	l.fragment(uriName)
	exactly := l.open(matcher)
	l.text(same, id)
	l.close(exactly)
	l.close(at)
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

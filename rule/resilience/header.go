package resilience

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// Bounds of the header fields of a message: their number, and their names and values together in KiB. An application may
// send HeaderFields and HeaderKB; a request with more is answered 431 by its own sidecar, an answer with more becomes a 502.
// A sidecar adds fields of its own, so the one at the other end takes somewhat more: what one has let pass no other
// refuses. Envoy's own bounds, 100 and 60, are less than programs send.
const (
	HeaderFields       = 1024
	HeaderKB           = 64
	PassedHeaderFields = HeaderFields + 76
	PassedHeaderKB     = HeaderKB + 16
)

// answers bounds the header fields of answers that come over a connection.
func answers(o *corev3.HttpProtocolOptions, fields, kb uint32) *corev3.HttpProtocolOptions {
	o.MaxHeadersCount, o.MaxResponseHeadersKb = u32(fields), u32(kb)
	return o
}

// Application has the settings of connections to an application.
func Application() *corev3.HttpProtocolOptions {
	return answers(&corev3.HttpProtocolOptions{}, HeaderFields, HeaderKB)
}

package rule

import hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

// Place is where a filter stands among the HTTP filters of a sidecar: requests go through them in this order, whatever rule
// brought them there.
type Place int

// The places in order. This is the one list of them.
const (
	PeerPlace          Place = iota // who calls, for those that ask
	AuthorizationPlace              // may it
	FaultPlace                      // delays and aborts, before anything is sent
	RouterPlace                     // sends it on: always the last
)

// Filter is what one feature of a rule adds to the HTTP filters: a feature that cuts across is one file of package config,
// with its fields, its lowering and this.
type Filter struct {
	Place Place
	// HTTP is the filter itself. It does nothing by itself: every route says what it wants of it.
	HTTP *hcmv3.HttpFilter
	// Route are the fields of the rule's routes that say what they want.
	Route Fragment
}

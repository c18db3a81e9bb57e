package rule

import (
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// AnyPath matches every request.
func AnyPath() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// Connect matches CONNECT, whose target is no path: no other match finds it.
func Connect() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}}
}

// Action is what every route does: it lacks its cluster. A timeout of 0 is none (Istio's default; Envoy's own is 15 s).
func Action(timeout time.Duration, retries *routev3.RetryPolicy) *routev3.RouteAction {
	return &routev3.RouteAction{
		RetryPolicy:                 retries,
		Timeout:                     durationpb.New(timeout),
		ClusterNotFoundResponseCode: routev3.RouteAction_SERVICE_UNAVAILABLE,
	}
}

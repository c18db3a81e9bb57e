package translate

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"isthmus.dev/isthmus/mesh"
)

// peerKey is the filter state that holds the client's URI SANs. Rules match the whole of it: with two SANs in a
// certificate it is a list and matches nothing, where Envoy's own principal matcher would take either.
const peerKey = "isthmus.peer"

// callers are the clusters that may call an application's port: its own, and those its services are exported to.
func (v *view) callers(services []*mesh.Service) []mesh.ClusterName {
	self, _ := v.s.Trust.Member(v.self)
	out := []mesh.ClusterName{v.self}
	for i := range v.s.Trust.Members {
		m := v.s.Trust.Members[i].Name
		exported := slices.ContainsFunc(services, func(svc *mesh.Service) bool {
			return self != nil && self.Exports(svc) && mesh.Admits(svc.Export.To, m)
		})
		if exported && !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	return out
}

// rbac allows the workloads of these clusters and nobody else.
func (v *view) rbac(clusters []mesh.ClusterName) *rbacv3.RBAC {
	return &rbacv3.RBAC{
		Action: rbacv3.RBAC_ALLOW,
		Policies: map[string]*rbacv3.Policy{"callers": {
			Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}},
			Principals: []*rbacv3.Principal{{Identifier: &rbacv3.Principal_FilterState{FilterState: &matcherv3.FilterStateMatcher{
				Key:     peerKey,
				Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: regex(v.identityRegex(clusters))},
			}}}},
		}},
	}
}

// setPeer stores the client's URI SANs, all of them.
func setPeer() []*setfilterstatev3.FilterStateValue {
	return []*setfilterstatev3.FilterStateValue{{
		Key:        &setfilterstatev3.FilterStateValue_ObjectKey{ObjectKey: peerKey},
		FactoryKey: "envoy.string",
		Value: &setfilterstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: "%DOWNSTREAM_PEER_URI_SAN%"},
			}},
		}},
	}}
}

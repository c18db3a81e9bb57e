package translate

import (
	"maps"
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

// callers are who may call an application's port. They name no member that nobody named: whoever joins or leaves changes
// no chain and no route, because the anchor says who is a member. A chain that changes costs its connections.
type callers struct {
	// any member of the federation.
	any bool
	// clusters that may call, where not any may: the own one and those an export names, members or not.
	clusters []mesh.ClusterName
	// refused may not, although an earlier anchor let them in and their connections live on.
	refused []mesh.ClusterName
}

// callers may be any member where one of the services is exported without a list.
func (v *view) callers(services []*mesh.Service) callers {
	names := map[mesh.ClusterName]bool{}
	self, _ := v.trust.Member(v.self)
	for _, svc := range services {
		if self == nil || !self.Exports(svc) {
			continue
		}
		if len(svc.Export.To) == 0 {
			return callers{any: true, refused: slices.Sorted(slices.Values(v.trust.Refused))}
		}
		for _, c := range svc.Export.To {
			names[c] = c != v.self && !slices.Contains(v.trust.Refused, c)
		}
	}
	c := callers{clusters: []mesh.ClusterName{v.self}}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if names[name] {
			c.clusters = append(c.clusters, name)
		}
	}
	return c
}

// callerRegex matches the identities of the callers' workloads; those refused are among them.
func (v *view) callerRegex(c callers) string {
	if c.any {
		return v.memberRegex()
	}
	return v.identityRegex(c.clusters)
}

// rbac allows the callers' workloads and nobody else.
func (v *view) rbac(c callers) *rbacv3.RBAC {
	principal := peer(v.callerRegex(c))
	if len(c.refused) > 0 {
		principal = &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: []*rbacv3.Principal{
			principal,
			{Identifier: &rbacv3.Principal_NotId{NotId: peer(v.identityRegex(c.refused))}},
		}}}}
	}
	return &rbacv3.RBAC{
		Action: rbacv3.RBAC_ALLOW,
		Policies: map[string]*rbacv3.Policy{"callers": {
			Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}},
			Principals:  []*rbacv3.Principal{principal},
		}},
	}
}

// peer matches the whole of the client's URI SANs.
func peer(re string) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_FilterState{FilterState: &matcherv3.FilterStateMatcher{
		Key:     peerKey,
		Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: regex(re)},
	}}}
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

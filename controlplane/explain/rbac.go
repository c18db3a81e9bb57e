package explain

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
)

// peerKey is the filter state in which a sidecar keeps the client's identity, see translate.
const peerKey = "isthmus.peer"

// judge applies the rules of one RBAC filter to a call that was let through so far: ALLOW wants one policy that matches, DENY
// none; policies are looked at by name. No rules at all allow everything. See
// https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/rbac/v3/rbac.proto.
func judge(rules *rbacv3.RBAC, c caller, so ruling) (ruling, error) {
	if rules == nil || rules.GetAction() == rbacv3.RBAC_LOG {
		return so, nil
	}
	for _, name := range slices.Sorted(maps.Keys(rules.GetPolicies())) {
		ok, err := policyMatches(rules.GetPolicies()[name], c)
		if err != nil {
			return ruling{}, fmt.Errorf("policy %s: %w", name, err)
		}
		if ok {
			allowed, verb := rules.GetAction() == rbacv3.RBAC_ALLOW, "denies"
			if allowed {
				verb = "allows"
			}
			return ruling{allowed: allowed, policy: name, reason: fmt.Sprintf("policy %s %s %s", name, verb, c.identity)}, nil
		}
	}
	if rules.GetAction() == rbacv3.RBAC_DENY {
		return so, nil
	}
	names := slices.Sorted(maps.Keys(rules.GetPolicies()))
	if len(names) == 0 {
		return ruling{reason: "nobody is admitted"}, nil
	}
	return ruling{reason: fmt.Sprintf("no policy allows %s (there is %s)", c.identity, strings.Join(names, ", "))}, nil
}

func policyMatches(p *rbacv3.Policy, c caller) (bool, error) {
	if p.GetCondition() != nil || p.GetCheckedCondition() != nil {
		return false, unknown("a condition of a policy", p.GetCondition())
	}
	ok, err := anyOf(p.GetPermissions(), c, permits)
	if err != nil || !ok {
		return false, err
	}
	return anyOf(p.GetPrincipals(), c, means)
}

// anyOf is OR, allOf AND.
func anyOf[R any](rules []R, c caller, holds func(R, caller) (bool, error)) (bool, error) {
	for _, r := range rules {
		if ok, err := holds(r, c); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func allOf[R any](rules []R, c caller, holds func(R, caller) (bool, error)) (bool, error) {
	for _, r := range rules {
		if ok, err := holds(r, c); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// permits tells whether a permission is for what is called.
func permits(p *rbacv3.Permission, c caller) (bool, error) {
	switch r := p.GetRule().(type) {
	case *rbacv3.Permission_Any:
		return r.Any, nil
	case *rbacv3.Permission_AndRules:
		return allOf(r.AndRules.GetRules(), c, permits)
	case *rbacv3.Permission_OrRules:
		return anyOf(r.OrRules.GetRules(), c, permits)
	case *rbacv3.Permission_NotRule:
		ok, err := permits(r.NotRule, c)
		return !ok, err
	case *rbacv3.Permission_Header:
		why, err := matchHeader(r.Header, c.request)
		return why == "", err
	case *rbacv3.Permission_UrlPath:
		return matchString(r.UrlPath.GetPath(), c.request.path)
	case *rbacv3.Permission_DestinationPort:
		return uint32(c.port) == r.DestinationPort, nil
	case *rbacv3.Permission_DestinationPortRange:
		return int32(c.port) >= r.DestinationPortRange.GetStart() && int32(c.port) < r.DestinationPortRange.GetEnd(), nil
	}
	return false, unknown("a permission", p)
}

// means tells whether a principal is the caller.
func means(p *rbacv3.Principal, c caller) (bool, error) {
	switch r := p.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return r.Any, nil
	case *rbacv3.Principal_AndIds:
		return allOf(r.AndIds.GetIds(), c, means)
	case *rbacv3.Principal_OrIds:
		return anyOf(r.OrIds.GetIds(), c, means)
	case *rbacv3.Principal_NotId:
		ok, err := means(r.NotId, c)
		return !ok, err
	case *rbacv3.Principal_Authenticated_:
		if r.Authenticated.GetPrincipalName() == nil {
			return true, nil
		}
		return matchString(r.Authenticated.GetPrincipalName(), c.identity)
	case *rbacv3.Principal_FilterState:
		if r.FilterState.GetKey() == peerKey && r.FilterState.GetStringMatch() != nil {
			return matchString(r.FilterState.GetStringMatch(), c.identity)
		}
	case *rbacv3.Principal_Header:
		why, err := matchHeader(r.Header, c.request)
		return why == "", err
	case *rbacv3.Principal_UrlPath:
		return matchString(r.UrlPath.GetPath(), c.request.path)
	}
	return false, unknown("a principal", p)
}

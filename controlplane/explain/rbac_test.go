package explain

import (
	"testing"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
)

func TestJudge(t *testing.T) {
	c := caller{identity: "spiffe://east.example.com/ns/shop/sa/caller", port: 8080, request: newRequest(Call{Path: "/a?b", Method: "GET"}, "x")}
	const (
		me  = `{"filter_state":{"key":"isthmus.peer","string_match":{"exact":"spiffe://east.example.com/ns/shop/sa/caller"}}}`
		you = `{"authenticated":{"principal_name":{"suffix":"/sa/you"}}}`
		any = `{"any":true}`
	)
	policy := func(permission, principal string) string {
		return `{"permissions":[` + permission + `],"principals":[` + principal + `]}`
	}
	tests := []struct {
		why, rules string
		allowed    bool
		policy     string
	}{
		{"nobody is admitted by no policy", `{}`, false, ""},
		{"denying nothing", `{"action":"DENY"}`, true, ""},
		{"logging decides nothing", `{"action":"LOG","policies":{"p":` + policy(any, any) + `}}`, true, ""},
		{"the caller", `{"policies":{"p":` + policy(any, me) + `}}`, true, "p"},
		{"another", `{"policies":{"p":` + policy(any, you) + `}}`, false, ""},
		{"one of two policies", `{"policies":{"a":` + policy(any, you) + `,"b":` + policy(any, me) + `}}`, true, "b"},
		{"denied", `{"action":"DENY","policies":{"p":` + policy(any, me) + `}}`, false, "p"},
		{"one of two principals", `{"policies":{"p":` + policy(any, you+","+me) + `}}`, true, "p"},
		{"both of two", `{"policies":{"p":` + policy(any, `{"and_ids":{"ids":[`+me+`,{"not_id":`+you+`}]}}`) + `}}`, true, "p"},
		{"either", `{"policies":{"p":` + policy(any, `{"or_ids":{"ids":[`+you+`,`+me+`]}}`) + `}}`, true, "p"},
		{"not the caller", `{"policies":{"p":` + policy(any, `{"not_id":`+me+`}`) + `}}`, false, ""},
		{"whoever has a certificate", `{"policies":{"p":` + policy(any, `{"authenticated":{}}`) + `}}`, true, "p"},
		{"a header of the caller", `{"policies":{"p":` + policy(any, `{"header":{"name":":method","string_match":{"exact":"GET"}}}`) + `}}`, true, "p"},
		{"a path, without the query", `{"policies":{"p":` + policy(`{"url_path":{"path":{"exact":"/a"}}}`, any) + `}}`, true, "p"},
		{"another path", `{"policies":{"p":` + policy(`{"not_rule":{"url_path":{"path":{"prefix":"/a"}}}}`, any) + `}}`, false, ""},
		{"the port", `{"policies":{"p":` + policy(`{"and_rules":{"rules":[{"destination_port":8080},{"destination_port_range":{"start":1,"end":8081}}]}}`, any) + `}}`, true, "p"},
		{"another port", `{"policies":{"p":` + policy(`{"or_rules":{"rules":[{"destination_port":81},{"destination_port_range":{"start":1,"end":8080}}]}}`, any) + `}}`, false, ""},
		{"a method", `{"policies":{"p":` + policy(`{"header":{"name":":method","string_match":{"exact":"POST"}}}`, any) + `}}`, false, ""},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			got, err := judge(parse(t, &rbacv3.RBAC{}, test.rules), c, ruling{allowed: true})
			if err != nil || got.allowed != test.allowed || got.policy != test.policy {
				t.Errorf("got %+v (%v), want %v by %q", got, err, test.allowed, test.policy)
			}
		})
	}
	if got, err := judge(nil, c, ruling{allowed: true}); err != nil || !got.allowed {
		t.Errorf("no rules: got %+v (%v)", got, err)
	}
	for _, rules := range []string{policy(`{"metadata":{"filter":"x"}}`, any), policy(any, `{"remote_ip":{"address_prefix":"10.0.0.0"}}`)} {
		if _, err := judge(parse(t, &rbacv3.RBAC{}, `{"policies":{"p":`+rules+`}}`), c, ruling{}); err == nil {
			t.Errorf("%s is guessed", rules)
		}
	}
}

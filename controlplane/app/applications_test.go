package app

import (
	"strings"
	"testing"

	"isthmus.dev/isthmus/controlplane/proxies"
	"isthmus.dev/isthmus/controlplane/xdsserver"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

func TestCheckApplications(t *testing.T) {
	web, gone := mesh.WorkloadName{Namespace: "me", Name: "web-1"}, mesh.WorkloadName{Namespace: "me", Name: "gone"}
	registered := map[mesh.WorkloadName]*mesh.Workload{web: {}}
	up, down, shy := proxies.Port{Number: 8000}, proxies.Port{Number: 9999, State: proxies.Down}, proxies.Port{Number: 8000, State: proxies.Down, LoopbackOnly: true}
	tests := []struct {
		why   string
		who   mesh.WorkloadName
		ports []proxies.Port
		says  string // empty: ok
	}{
		{"all answer", web, []proxies.Port{up}, ""},
		{"not started yet", web, []proxies.Port{down}, ""},
		{"somebody's service has a wrong port", web, []proxies.Port{up, down}, "me/web-1 on port 9999"},
		{"it listens on loopback", web, []proxies.Port{shy}, "127.0.0.1 only, where no other workload reaches them: me/web-1 on port 8000"},
		{"loopback first", web, []proxies.Port{{Number: 7000}, shy, down}, "127.0.0.1 only"},
		{"busy is no mistake", web, []proxies.Port{up, {Number: 9000, State: proxies.Busy}}, ""},
		{"not registered any more", gone, []proxies.Port{shy}, ""},
	}
	for _, test := range tests {
		c := checkApplications(pmap.From(registered), map[mesh.WorkloadName]proxies.Facts{test.who: {Ports: test.ports}})
		if test.says == "" && c.Status != "ok" || test.says != "" && (c.Status != "warn" || c.Hint == "" || !strings.Contains(c.Message, test.says)) {
			t.Errorf("%s: %v, want %q", test.why, c, test.says)
		}
	}
}

// TestProxyView: synced is what was acknowledged and is not in doubt.
func TestProxyView(t *testing.T) {
	status := &xdsserver.ProxyStatus{Types: []xds.TypeStatus{{TypeURL: xds.ClusterType, Synced: true}, {TypeURL: xds.RouteType, Synced: true}, {TypeURL: xds.SecretType}}}
	p := proxyView(status, func(t string) bool { return t != xds.RouteType })
	if !p.GetClusters().GetSynced() || p.GetRoutes().GetSynced() || p.GetSecrets().GetSynced() {
		t.Errorf("clusters %v, routes %v, secrets %v; want only clusters synced", p.GetClusters(), p.GetRoutes(), p.GetSecrets())
	}
}

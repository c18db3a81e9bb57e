package admin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/world"
)

// Results of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
)

// Check looks at everything this control plane needs, and says what to do.
func (s *meshServer) Check(ctx context.Context, _ *admin.CheckRequest) (*admin.CheckResponse, error) {
	snapshot := s.config.Snapshot()
	registry, proxies := s.checkRegistry(ctx)
	out := []*admin.Check{registry, checkState(snapshot), checkMembership(snapshot), checkPeers(snapshot)}
	if s.config.Proxies != nil {
		// A gateway's entry is in the registry alone; where that cannot be read, the state knows the workloads.
		out = append(out, checkProxies(max(proxies, snapshot.Workloads.Len()), s.config.Proxies()))
	}
	if s.config.Checks != nil {
		out = append(out, s.config.Checks(ctx)...)
	}
	return &admin.CheckResponse{Checks: out}, nil
}

// checkRegistry also counts the proxies that are registered.
func (s *meshServer) checkRegistry(ctx context.Context) (check *admin.Check, proxies int) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	objects, _, err := s.config.Registry.List(ctx, config.Query{})
	if err != nil {
		return &admin.Check{Id: "registry", Status: checkFail, Message: err.Error(), Hint: "look at the log of the control plane, and at the disk of its folder"}, 0
	}
	for _, o := range objects {
		if o.Name.Kind == config.KindWorkloadEntry {
			proxies++
		}
	}
	return &admin.Check{Id: "registry", Status: checkOK, Message: fmt.Sprintf("%d objects", len(objects))}, proxies
}

func checkState(snapshot *world.Snapshot) *admin.Check {
	if !snapshot.Ready {
		return &admin.Check{Id: "state", Status: checkFail, Message: "the state is not loaded, so proxies get no answer", Hint: "wait a moment; if it stays, look at the log of the control plane"}
	}
	broken := 0
	for _, findings := range snapshot.Findings.All() {
		if config.HasError(*findings) {
			broken++
		}
	}
	if broken > 0 {
		return &admin.Check{Id: "state", Status: checkWarn, Message: fmt.Sprintf("%d objects are left out because they have errors", broken), Hint: "isthmus get KIND -A -o json shows the status of each"}
	}
	return &admin.Check{Id: "state", Status: checkOK, Message: fmt.Sprintf("%d services, %d workloads", snapshot.Services.Len(), snapshot.Workloads.Len())}
}

func checkMembership(snapshot *world.Snapshot) *admin.Check {
	t := snapshot.Trust
	if t == nil {
		return &admin.Check{Id: "federation", Status: checkWarn, Message: "this control plane is in no federation", Hint: "isthmus cluster init, or isthmus cluster join"}
	}
	if _, ok := t.Member(t.Self); !ok {
		return &admin.Check{Id: "federation", Status: checkFail, Message: fmt.Sprintf("cluster %s is no member of the document any more", t.Self), Hint: "ask the authority for a token and join again"}
	}
	return &admin.Check{Id: "federation", Status: checkOK, Message: fmt.Sprintf("%s in %s, %d members, document %d.%d", t.Self, t.Federation, len(t.Members), t.Term, t.Seq)}
}

// checkPeers looks at the streams: a member without a catalogue was never heard.
func checkPeers(snapshot *world.Snapshot) *admin.Check {
	if snapshot.Trust == nil {
		return &admin.Check{Id: "peers", Status: checkOK, Message: "none"}
	}
	var lost []string
	for _, m := range snapshot.Trust.Members {
		if catalogue := snapshot.Remote[m.Name]; m.Name != snapshot.Trust.Self && (catalogue == nil || !catalogue.Reachable) {
			lost = append(lost, string(m.Name))
		}
	}
	if len(lost) == 0 {
		return &admin.Check{Id: "peers", Status: checkOK, Message: fmt.Sprintf("%d reachable", max(0, len(snapshot.Trust.Members)-1))}
	}
	slices.Sort(lost)
	return &admin.Check{Id: "peers", Status: checkWarn, Message: "cannot reach " + strings.Join(lost, ", ") + "; their last known state is used",
		Hint: "check that they run, and that this cluster reaches their gateways (isthmus cluster list shows the addresses)"}
}

// checkProxies looks at what proxies have taken. When none of the registered ones is connected, it is not them who are
// away.
func checkProxies(registered int, proxies []*admin.Proxy) *admin.Check {
	var refused, behind []string
	connected := 0
	for _, p := range proxies {
		if p.GetConnected() {
			connected++
		}
		synced := true
		for _, t := range []*admin.ProxyType{p.GetClusters(), p.GetListeners(), p.GetRoutes(), p.GetEndpoints(), p.GetSecrets()} {
			synced = synced && (t == nil || t.GetSynced())
		}
		switch {
		case p.GetNack() != "":
			refused = append(refused, p.GetInstance())
		case !p.GetConnected() || !synced:
			behind = append(behind, p.GetInstance())
		}
	}
	slices.Sort(refused)
	slices.Sort(behind)
	switch {
	case registered > 0 && connected == 0:
		return &admin.Check{Id: "proxies", Status: checkFail, Message: fmt.Sprintf("none of the proxies that are registered (%d) is connected", registered),
			Hint: "they come back by themselves within a minute of a start; if not, look at the log of one: it says why (an identity that expired more than a week ago takes a new start of the workload)"}
	case len(refused) > 0:
		return &admin.Check{Id: "proxies", Status: checkFail, Message: "refused their configuration: " + strings.Join(refused, ", "), Hint: "isthmus proxy status says why; please report it"}
	case len(behind) > 0:
		return &admin.Check{Id: "proxies", Status: checkWarn, Message: "not up to date: " + strings.Join(behind, ", "), Hint: "isthmus proxy status shows what they miss"}
	}
	return &admin.Check{Id: "proxies", Status: checkOK, Message: fmt.Sprintf("%d up to date", len(proxies))}
}

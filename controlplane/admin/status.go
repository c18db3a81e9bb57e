package admin

import (
	"encoding/json"
	"fmt"
	"slices"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/analyze"
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
)

// unresolved are the codes about what an object names and there is not.
var unresolved = []string{mesh.CodeNoHost, mesh.CodeNoDestination, mesh.CodeNoSubset, mesh.CodeNoPort, mesh.CodeNoProtocol}

// condition is one statement about an object, as Kubernetes writes it.
type condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"` // True or False
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

// statusOf is the status of an object as JSON, in the conditions that Gateway API has for routes: whether it is used
// (Accepted; a reason other than that says what is wrong with it all the same), whether what it names exists
// (ResolvedRefs), and for workloads whether they answer.
func statusOf(snapshot *world.Snapshot, o translate.Options, name mesh.ObjectName) []byte {
	accepted := condition{Type: "Accepted", Status: "True", Reason: "Accepted"}
	resolved := condition{Type: "ResolvedRefs", Status: "True", Reason: "ResolvedRefs"}
	for _, f := range analyze.Object(snapshot, o, name) {
		if f.Level == mesh.LevelError && accepted.Status == "True" || accepted.Message == "" {
			accepted.Reason, accepted.Message = f.Code, f.Message
		}
		if f.Level == mesh.LevelError {
			accepted.Status = "False"
		}
		if slices.Contains(unresolved, f.Code) && resolved.Status == "True" {
			resolved.Status, resolved.Reason, resolved.Message = "False", f.Code, f.Message
		}
	}
	out := struct {
		Conditions []condition `json:"conditions"`
		VIP        string      `json:"vip,omitempty"`
	}{Conditions: []condition{accepted}}
	if name.Kind == config.KindVirtualService || name.Kind == config.KindDestinationRule {
		out.Conditions = append(out.Conditions, resolved)
	}
	service := mesh.ServiceName{Namespace: name.Namespace, Name: name.Name}
	switch name.Kind {
	case config.KindWorkloadEntry:
		if w := snapshot.Workloads.At(mesh.WorkloadName{Namespace: name.Namespace, Name: name.Name}); w != nil {
			ready := condition{Type: "Ready", Status: "False", Reason: "NotAnswering"}
			if w.Ready {
				ready.Status, ready.Reason = "True", "Answering"
			}
			out.Conditions = append(out.Conditions, ready)
		}
	case config.KindServiceExport:
		valid := condition{Type: "Valid", Status: "True", Reason: "Valid"}
		if s := snapshot.Services.At(service); s == nil || s.Export == nil {
			valid.Status, valid.Reason, valid.Message = "False", "NoService", "there is no Service of that name"
		} else if err := granted(snapshot, name.Namespace); err != nil {
			valid.Status, valid.Reason, valid.Message = "False", mesh.CodeNotGranted, err.Error()
		}
		out.Conditions = append(out.Conditions, valid, conflicting(snapshot, service))
		out.VIP = vipOf(snapshot, service.ClusterSetHost())
	case config.KindService:
		out.VIP = vipOf(snapshot, service.LocalHost())
	}
	raw, err := json.Marshal(out)
	if err != nil {
		panic("a status cannot be encoded: " + err.Error()) // strings only
	}
	return raw
}

func vipOf(snapshot *world.Snapshot, host mesh.Host) string {
	if addr := snapshot.VIP(host); addr.IsValid() {
		return addr.String()
	}
	return ""
}

// conflicting is the condition of KEP-1645 about an export that others disagree with, here or at its owner.
func conflicting(snapshot *world.Snapshot, name mesh.ServiceName) condition {
	out := condition{Type: "Conflict", Status: "False", Reason: "NoConflict"}
	imported := snapshot.Imports.At(name)
	if imported == nil || snapshot.Trust == nil {
		return out
	}
	for _, c := range imported.Conflicts {
		if c.Cluster == snapshot.Trust.Self || imported.Owner == snapshot.Trust.Self {
			out.Status, out.Reason = "True", "PortConflict"
			out.Message = fmt.Sprintf("port %d is %s in cluster %s and %s in cluster %s, which decides", c.Port, c.Protocol, c.Cluster, c.OwnerProtocol, imported.Owner)
			return out
		}
	}
	return out
}

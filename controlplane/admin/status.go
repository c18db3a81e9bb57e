package admin

import (
	"encoding/json"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/mesh"
)

// condition is one statement about an object, as Kubernetes writes it.
type condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"` // True or False
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

// statusOf is the status of an object as JSON: whether it is used and, for
// workloads, whether it answers.
func statusOf(snapshot *mesh.Snapshot, name mesh.ObjectName) []byte {
	accepted := condition{Type: "Accepted", Status: "True", Reason: "Accepted"}
	for _, f := range snapshot.Config.Findings {
		if f.Object == name.String() && (f.Level == mesh.LevelError || accepted.Message == "") {
			accepted.Reason, accepted.Message = f.Code, f.Message
			if f.Level == mesh.LevelError {
				accepted.Status = "False"
				break
			}
		}
	}
	out := struct {
		Conditions []condition `json:"conditions"`
		VIP        string      `json:"vip,omitempty"`
	}{Conditions: []condition{accepted}}
	service := mesh.ServiceName{Namespace: name.Namespace, Name: name.Name}
	switch name.Kind {
	case config.KindWorkloadEntry:
		if w, ok := snapshot.Workloads[mesh.WorkloadName{Namespace: name.Namespace, Name: name.Name}]; ok {
			ready := condition{Type: "Ready", Status: "False", Reason: "NotAnswering"}
			if w.Ready {
				ready.Status, ready.Reason = "True", "Answering"
			}
			out.Conditions = append(out.Conditions, ready)
		}
	case config.KindServiceExport:
		valid := condition{Type: "Valid", Status: "True", Reason: "Valid"}
		if s := snapshot.Config.Services[service]; s == nil || s.Export == nil {
			valid.Status, valid.Reason, valid.Message = "False", "NoService", "there is no Service of that name"
		} else if err := granted(snapshot, name.Namespace); err != nil {
			valid.Status, valid.Reason, valid.Message = "False", codeNotGranted, err.Error()
		}
		out.Conditions = append(out.Conditions, valid)
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

func vipOf(snapshot *mesh.Snapshot, host mesh.Host) string {
	if addr, ok := snapshot.VIPs[host]; ok {
		return addr.String()
	}
	return ""
}

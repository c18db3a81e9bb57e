package admin

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/explain"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// Explain says what becomes of a call, now or after changes. It reads, and changes nothing.
func (s *meshServer) Explain(ctx context.Context, request *admin.ExplainRequest) (*admin.ExplainResponse, error) {
	if s.config.Folded == nil || s.config.Plan == nil {
		return s.UnimplementedMeshServer.Explain(ctx, request)
	}
	state, plan := s.config.Folded(), s.config.Plan()
	if !state.Snapshot().Ready {
		return nil, hint.Wrap(hint.Code(status.Error(codes.Unavailable, "the control plane has not read its whole state yet"), "starting"), "try again in a second")
	}
	changes, err := changesOf(request.GetChanges())
	if err != nil {
		return nil, asStatus(err)
	}
	objects, err := s.stored(ctx, explain.Objects(changes))
	if err != nil {
		return nil, err
	}
	state, err = explain.Apply(state, changes, objects, namespaceOf(request.GetNamespace()))
	if err != nil {
		return nil, asStatus(err)
	}
	answer, err := explain.Explain(explain.Mesh{Snapshot: state.Snapshot(), Plan: plan.Step(state.Snapshot())}, callOf(request))
	if err != nil {
		return nil, asStatus(err)
	}
	return wireAnswer(answer), nil
}

// asStatus gives an error about the question the code that says so.
func asStatus(err error) error {
	code := codes.Internal
	switch hint.CodeOf(err) {
	case explain.CodeNoWorkload, explain.CodeNoHost, explain.CodeNoObject:
		code = codes.NotFound
	case explain.CodeGrammar, explain.CodeRefused:
		code = codes.InvalidArgument
	case explain.CodeAlone:
		code = codes.FailedPrecondition
	}
	return hint.Wrap(hint.Code(status.Error(code, err.Error()), hint.CodeOf(err)), hint.Of(err))
}

func changesOf(all []*admin.ExplainChange) ([]explain.Change, error) {
	var out []explain.Change
	for _, c := range all {
		change, err := explain.ParseChange(c.GetText())
		if err != nil {
			return nil, err
		}
		change.Content = c.GetYaml()
		out = append(out, change)
	}
	return out, nil
}

// stored gives those of some objects that are in the registry.
func (s *meshServer) stored(ctx context.Context, names []mesh.ObjectName) (map[mesh.ObjectName]config.Object, error) {
	out := map[mesh.ObjectName]config.Object{}
	for _, name := range names {
		o, err := s.config.Registry.Get(ctx, name)
		if errors.Is(err, config.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		out[name] = o.Object()
	}
	return out, nil
}

func callOf(r *admin.ExplainRequest) explain.Call {
	call := explain.Call{
		From: r.GetFrom(), Namespace: namespaceOf(r.GetNamespace()), Account: r.GetAccount(), Host: r.GetHost(), Port: r.GetPort(),
		Path: r.GetPath(), Method: r.GetMethod(),
	}
	for _, h := range r.GetHeaders() {
		call.Headers = append(call.Headers, explain.Header{Name: h.GetName(), Value: h.GetValue()})
	}
	return call
}

func wireAnswer(a *explain.Answer) *admin.ExplainResponse {
	out := &admin.ExplainResponse{From: a.From.Name + "." + a.From.Namespace, Host: string(a.Host), Port: a.Port, Path: a.Path, Verdict: string(a.Verdict)}
	for _, s := range a.Steps {
		step := &admin.ExplainStep{Step: string(s.Step), Decision: s.Decision, Reason: s.Reason,
			Object: s.Origin.Object, Path: s.Origin.Path, File: s.Origin.File, Line: int32(s.Origin.Line)}
		for _, r := range s.Rejected {
			step.Rejected = append(step.Rejected, &admin.ExplainRejected{Object: r.Object, Reason: r.Reason})
		}
		out.Steps = append(out.Steps, step)
	}
	for _, s := range a.Shares {
		share := &admin.ExplainShare{Cluster: string(s.Cluster), Zone: s.Zone, Subset: s.Subset, Host: string(s.Host), Predicted: s.Predicted}
		for _, e := range s.Endpoints {
			share.Endpoints = append(share.Endpoints, &admin.ExplainEndpoint{
				Name: e.Name, Healthy: e.Healthy, Weight: e.Weight, Priority: e.Priority, Excluded: e.Excluded,
			})
		}
		out.Shares = append(out.Shares, share)
	}
	return out
}

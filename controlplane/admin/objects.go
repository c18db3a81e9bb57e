package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/analyze"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// Outcomes of an apply.
const (
	created    = "created"
	configured = "configured"
	unchanged  = "unchanged"
)

// kindNamed is the kind a person means.
func kindNamed(name string) (string, error) {
	if kind, ok := config.KindNamed(name); ok {
		return kind.Name, nil
	}
	var names []string
	for _, kind := range config.Kinds() {
		names = append(names, kind.Name)
	}
	return "", hint.Wrapf(hint.Code(status.Errorf(codes.InvalidArgument, "there is no kind %q", name), "unknown_kind"),
		"kinds are %s and %s", strings.Join(names[:len(names)-1], ", "), names[len(names)-1])
}

// objects serves adminrpc.Config.
type objects struct {
	adminrpc.UnimplementedConfigServer
	config Config
}

// Apply writes all documents or none. It reads the objects that the documents name, and no others: its cost does not depend on
// what else there is.
func (s *objects) Apply(ctx context.Context, request *admin.ApplyRequest) (*admin.ApplyResponse, error) {
	var files []config.File
	for _, f := range request.GetFiles() {
		files = append(files, config.File{Name: f.GetName(), Data: f.GetYaml()})
	}
	read, findings := config.Decode(files, request.GetDefaultNamespace())
	have, err := s.named(ctx, read)
	if err != nil {
		return nil, err
	}
	findings = append(findings, analyze.Planned(s.config.state(), s.config.options(), read)...)
	response := &admin.ApplyResponse{Findings: wireFindings(findings)}
	if config.HasError(findings) {
		return response, nil
	}
	changes, err := s.plan(request.GetExpect(), read, have, response)
	if err != nil || request.GetDryRun() {
		return response, err
	}
	versions, err := s.config.Registry.Commit(ctx, changes...)
	if err != nil {
		return nil, conflict(err)
	}
	for i, o := range response.Objects {
		if response.Outcomes[i] != unchanged {
			o.Version, versions = versions[0], versions[1:]
		}
	}
	response.Applied = true
	return response, nil
}

// named reads what the registry has of the objects.
func (s *objects) named(ctx context.Context, read []config.Object) (map[mesh.ObjectName]config.Stored, error) {
	var names []mesh.ObjectName
	for _, o := range read {
		names = append(names, o.ID())
	}
	have := map[mesh.ObjectName]config.Stored{}
	if len(names) == 0 {
		return have, nil
	}
	slices.SortFunc(names, func(a, b mesh.ObjectName) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	stored, err := s.config.Registry.Read(ctx, slices.Compact(names)...)
	if err != nil {
		return nil, err
	}
	for _, o := range stored {
		have[o.Name] = o
	}
	return have, nil
}

// plan decides what becomes of each object, notes it in the response and gives
// what is to be written.
func (s *objects) plan(expect map[string]int64, read []config.Object, have map[mesh.ObjectName]config.Stored, response *admin.ApplyResponse) ([]config.Change, error) {
	var changes []config.Change
	met := 0
	for _, o := range read {
		old, exists := have[o.ID()]
		change := config.Change{Name: o.ID(), JSON: o.JSON, Expect: config.AnyVersion}
		outcome := configured
		switch {
		case !exists:
			outcome = created
		case bytes.Equal(old.JSON, o.JSON):
			outcome = unchanged
		}
		if o.ResourceVersion != "" && outcome != unchanged {
			if change.Expect = old.Version; exists && o.ResourceVersion != strconv.FormatInt(old.Version, 10) {
				return nil, outdated(o, old.Version)
			}
		}
		if want, ok := expect[o.ID().String()]; ok {
			met++
			if change.Expect = want; old.Version != want {
				return nil, conflict(&config.ConflictError{Object: o.ID(), Want: want, Have: old.Version})
			}
		}
		if outcome != unchanged {
			changes = append(changes, change)
		}
		response.Objects = append(response.Objects, &admin.Object{
			ApiVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Json: o.JSON, Version: old.Version,
		})
		response.Outcomes = append(response.Outcomes, outcome)
	}
	if met < len(expect) {
		return nil, hint.Code(status.Errorf(codes.InvalidArgument, "a version is expected of an object that is not in the documents"), "usage")
	}
	return changes, nil
}

// outdated refuses a document that was made from another version than the stored one. A document of an object that is not stored
// is taken whatever version it names: it comes from another registry, or what it was made from is gone.
func outdated(o config.Object, have int64) error {
	err := status.Errorf(codes.Aborted, "%s has version %d, the document at %s:%d was made from version %.40q", o.ID(), have, o.File, o.Line, o.ResourceVersion)
	return hint.Wrap(hint.Code(err, "conflict"), "someone else changed it: get it again, and apply your change to that; without metadata.resourceVersion the document replaces whatever there is")
}

// granted says why the cluster may not export from a namespace. Outside a
// federation there is nobody to ask, and nothing is exported anyway.
func granted(snapshot *world.Snapshot, namespace string) error {
	if snapshot.Trust == nil {
		return nil
	}
	self, ok := snapshot.Trust.Member(snapshot.Trust.Self)
	if ok && self.Grants(namespace) {
		return nil
	}
	err := fmt.Errorf("cluster %s is not granted namespace %q", snapshot.Trust.Self, namespace)
	return hint.Wrapf(hint.Code(err, "not_granted"), "grants are given with the token: on the authority, "+
		"isthmus cluster token create %s --namespaces %s, and join again; or use a namespace the cluster has", snapshot.Trust.Self, namespace)
}

// Get lists objects, or one.
func (s *objects) Get(ctx context.Context, request *admin.GetRequest) (*admin.GetResponse, error) {
	kind, err := kindNamed(request.GetKind())
	if err != nil {
		return nil, err
	}
	query := config.Query{Kind: kind, Namespace: namespaceOf(request.GetNamespace())}
	if request.GetAllNamespaces() {
		query.Namespace = ""
	}
	found, revision, err := s.config.Registry.List(ctx, query)
	if err != nil {
		return nil, err
	}
	response := &admin.GetResponse{Revision: revision}
	for _, o := range found {
		if request.GetName() == "" || request.GetName() == o.Name.Name {
			response.Objects = append(response.Objects, s.wireObject(o))
		}
	}
	if request.GetName() != "" && len(response.Objects) == 0 {
		return nil, missing(mesh.ObjectName{Kind: kind, Namespace: namespaceOf(request.GetNamespace()), Name: request.GetName()})
	}
	return response, nil
}

// Watch sends the present objects and SYNCED, then every change.
func (s *objects) Watch(request *admin.WatchRequest, stream adminrpc.Config_WatchServer) error {
	kind, err := kindNamed(request.GetKind())
	if err != nil {
		return err
	}
	query := config.Query{Kind: kind, Namespace: namespaceOf(request.GetNamespace())}
	if request.GetAllNamespaces() {
		query.Namespace = ""
	}
	after := request.GetAfterRevision()
	if after == 0 {
		found, revision, err := s.config.Registry.List(stream.Context(), query)
		if err != nil {
			return err
		}
		for _, o := range found {
			if err := stream.Send(&admin.WatchEvent{Type: admin.WatchEvent_PUT, Object: s.wireObject(o), Revision: revision}); err != nil {
				return err
			}
		}
		after = revision
	}
	if err := stream.Send(&admin.WatchEvent{Type: admin.WatchEvent_SYNCED, Revision: after}); err != nil {
		return err
	}
	err = s.config.Registry.Watch(stream.Context(), query, after, func(e config.Event) error {
		event := &admin.WatchEvent{Type: admin.WatchEvent_PUT, Object: s.wireObject(e.Stored), Revision: e.Version}
		if e.Deleted {
			event.Type = admin.WatchEvent_DELETE
		}
		return stream.Send(event)
	})
	if errors.Is(err, config.ErrCompacted) {
		return hint.Wrap(hint.Code(status.Error(codes.OutOfRange, err.Error()), "compacted"), "list again and watch from the revision of that answer")
	}
	return err
}

// Delete removes one object.
func (s *objects) Delete(ctx context.Context, request *admin.DeleteRequest) (*admin.DeleteResponse, error) {
	kind, err := kindNamed(request.GetKind())
	if err != nil {
		return nil, err
	}
	name := mesh.ObjectName{Kind: kind, Namespace: namespaceOf(request.GetNamespace()), Name: request.GetName()}
	expect := config.AnyVersion
	if v := request.GetVersion(); v != 0 {
		expect = v
	}
	found := analyze.Planned(s.config.state(), s.config.options(), nil, name)
	if err := s.config.Registry.Delete(ctx, name, expect); errors.Is(err, config.ErrNotFound) {
		return nil, missing(name)
	} else if err != nil {
		return nil, conflict(err)
	}
	return &admin.DeleteResponse{Findings: wireFindings(found)}, nil
}

// Analyze gives what is wrong with the configuration that there is, and with what came along with the exports of others.
func (s *objects) Analyze(context.Context, *admin.AnalyzeRequest) (*admin.AnalyzeResponse, error) {
	return &admin.AnalyzeResponse{Findings: wireFindings(analyze.All(s.config.Snapshot(), s.config.options()))}, nil
}

func namespaceOf(namespace string) string {
	if namespace == "" {
		return "default"
	}
	return namespace
}

func missing(name mesh.ObjectName) error {
	return hint.Wrapf(hint.Code(status.Errorf(codes.NotFound, "%s does not exist", name), "not_found"),
		"isthmus get %s -A lists those that do", strings.ToLower(name.Kind))
}

// conflict gives a refused compare-and-swap its kind; other errors pass.
func conflict(err error) error {
	refused, ok := errors.AsType[*config.ConflictError](err)
	if !ok {
		return err
	}
	return hint.Wrap(hint.Code(status.Error(codes.Aborted, refused.Error()), "conflict"), "someone else changed it: get it again, and apply your change to that")
}

// wireObject adds what is known of an object to what is stored.
func (s *objects) wireObject(o config.Stored) *admin.Object {
	out := &admin.Object{Kind: o.Name.Kind, Namespace: o.Name.Namespace, Name: o.Name.Name, Json: o.JSON, Version: o.Version}
	var head struct {
		APIVersion string `json:"apiVersion"`
	}
	if json.Unmarshal(o.JSON, &head) == nil {
		out.ApiVersion = head.APIVersion
	}
	if len(o.JSON) > 0 {
		out.Status = statusOf(s.config.Snapshot(), s.config.options(), o.Name)
	}
	return out
}

func wireFindings(findings []mesh.Finding) []*admin.Finding {
	var out []*admin.Finding
	for _, f := range findings {
		out = append(out, &admin.Finding{Code: f.Code, Level: string(f.Level), Object: f.Object, Path: f.Path, File: f.File, Line: int32(f.Line), Message: f.Message, Fix: f.Fix})
	}
	return out
}

package admin

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/nearest"
	"isthmus.dev/isthmus/mesh"
)

// Inspect puts a question to the agent of a proxy and calls take with one part of the answer after the other.
type Inspect func(ctx context.Context, proxy mesh.ProxyID, question *workload.Question, take func([]byte) error) error

// subjects are what InspectProxyRequest may be about.
var subjects = map[string]workload.Subject{
	"all": workload.Subject_SUBJECT_ALL, "bootstrap": workload.Subject_SUBJECT_BOOTSTRAP, "clusters": workload.Subject_SUBJECT_CLUSTERS,
	"listeners": workload.Subject_SUBJECT_LISTENERS, "routes": workload.Subject_SUBJECT_ROUTES, "endpoints": workload.Subject_SUBJECT_ENDPOINTS,
	"secrets": workload.Subject_SUBJECT_SECRETS, "hosts": workload.Subject_SUBJECT_HOSTS, "loggers": workload.Subject_SUBJECT_LOGGERS,
}

// maxLevels bounds the levels of one request: Envoy has some 120 loggers.
const maxLevels = 256

// InspectProxy asks a proxy about its Envoy, and passes the answer on as it comes.
func (s *meshServer) InspectProxy(r *admin.InspectProxyRequest, stream grpc.ServerStreamingServer[admin.InspectProxyPart]) error {
	if s.config.Inspect == nil || s.config.Proxies == nil {
		return status.Error(codes.Unimplemented, "this control plane asks no proxies")
	}
	subject, ok := subjects[r.GetSubject()]
	switch {
	case !ok:
		return status.Errorf(codes.InvalidArgument, "a proxy is not asked about %q", r.GetSubject())
	case len(r.GetLevels()) > 0 && subject != workload.Subject_SUBJECT_LOGGERS:
		return status.Error(codes.InvalidArgument, "levels are of loggers")
	case len(r.GetLevels()) > maxLevels:
		return status.Errorf(codes.InvalidArgument, "%d levels, at most %d are taken", len(r.GetLevels()), maxLevels)
	}
	proxy, err := s.proxy(mesh.WorkloadName{Namespace: r.GetNamespace(), Name: r.GetName()})
	if err != nil {
		return err
	}
	question := &workload.Question{Subject: subject, Levels: r.GetLevels()}
	return s.config.Inspect(stream.Context(), proxy, question, func(part []byte) error {
		return stream.Send(&admin.InspectProxyPart{Gzip: part})
	})
}

// proxy finds a proxy of this cluster by its name.
func (s *meshServer) proxy(name mesh.WorkloadName) (mesh.ProxyID, error) {
	var known []string
	for _, p := range s.config.Proxies() {
		if p.GetInstance() == name.String() {
			return mesh.ProxyID{Kind: mesh.ProxyKind(p.GetKind()), Namespace: name.Namespace, Instance: name.Name}, nil
		}
		namespace, instance, _ := strings.Cut(p.GetInstance(), "/")
		known = append(known, instance+"."+namespace)
	}
	if s.config.Snapshot().Workloads.At(name) != nil { // one that this control plane has never seen
		return mesh.ProxyID{Kind: mesh.Sidecar, Namespace: name.Namespace, Instance: name.Name}, nil
	}
	asked := name.Name + "." + name.Namespace
	err := hint.Code(status.Errorf(codes.NotFound, "there is no proxy %s in this cluster", asked), "not_found")
	slices.Sort(known)
	if like := nearest.Of(asked, known, 3); len(like) > 0 {
		return mesh.ProxyID{}, hint.Wrapf(err, "did you mean %s? isthmus proxy status shows all", strings.Join(like, ", "))
	}
	return mesh.ProxyID{}, hint.Wrap(err, "isthmus proxy status shows the proxies of this cluster; write NAME.NAMESPACE")
}

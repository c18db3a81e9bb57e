package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// aloneName stands for this cluster while it is in no federation and has no name.
const aloneName = "local"

// meshServer serves adminrpc.Mesh.
type meshServer struct {
	adminrpc.UnimplementedMeshServer
	config Config
}

// ListServices shows every service of this cluster and every import.
func (s *meshServer) ListServices(context.Context, *admin.ListServicesRequest) (*admin.ListServicesResponse, error) {
	return &admin.ListServicesResponse{Services: services(s.config.Snapshot(), time.Now())}, nil
}

// services is pure. A service that is exported by any cluster is shown under its clusterset host with every cluster that
// exports it to this one, as they are merged for proxies; one that this cluster keeps to itself is shown under its local
// host. Both may be there.
func services(snapshot *world.Snapshot, now time.Time) []*admin.Service {
	var out []*admin.Service
	names := map[mesh.ServiceName]bool{}
	for name := range snapshot.Imports.Keys() {
		names[name] = true
	}
	for name := range snapshot.Services.Keys() {
		names[name] = true
	}
	for _, name := range slices.SortedFunc(maps.Keys(names), compareServices) {
		local, imported := snapshot.Services.At(name), snapshot.Imports.At(name)
		exported := local != nil && local.Export != nil
		if local != nil && !exported {
			service := newService(snapshot, name, name.LocalHost(), local.Ports)
			service.Clusters = append(service.Clusters, ownInstances(snapshot, local))
			out = append(out, service)
		}
		switch {
		case imported != nil:
			service := newService(snapshot, name, name.ClusterSetHost(), imported.Ports)
			service.Exported = exported
			if exported {
				service.Clusters = append(service.Clusters, ownInstances(snapshot, local))
			}
			exporters := slices.Clone(imported.Exporters)
			slices.SortFunc(exporters, func(a, b mesh.Exporter) int { return cmp.Compare(a.Cluster, b.Cluster) })
			for _, e := range exporters {
				if e.Remote != nil {
					service.Clusters = append(service.Clusters, peersInstances(&e, snapshot.Remote[e.Cluster], now))
				}
			}
			out = append(out, service)
		case exported: // alone, or not granted
			service := newService(snapshot, name, name.ClusterSetHost(), local.Ports)
			service.Exported = true
			service.Clusters = append(service.Clusters, ownInstances(snapshot, local))
			out = append(out, service)
		}
	}
	return out
}

func compareServices(a, b mesh.ServiceName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func newService(snapshot *world.Snapshot, name mesh.ServiceName, host mesh.Host, ports []mesh.Port) *admin.Service {
	out := &admin.Service{Name: name.Name, Namespace: name.Namespace, Host: string(host), Vip: vipOf(snapshot, host)}
	for _, p := range ports {
		out.Ports = append(out.Ports, &admin.ServicePort{Name: p.Name, Port: p.Number, Protocol: string(p.Protocol)})
	}
	return out
}

// ownInstances counts the workloads of a service of this cluster.
func ownInstances(snapshot *world.Snapshot, service *mesh.Service) *admin.ServiceCluster {
	self, region := mesh.ClusterName(aloneName), ""
	if t := snapshot.Trust; t != nil {
		self, region = t.Self, regionOf(t, t.Self)
	}
	out := &admin.ServiceCluster{Name: string(self), Localities: map[string]uint32{}}
	if b := snapshot.Backends.At(service.Name); b != nil {
		out.Slots = uint32(len(b.Slots))
		for _, w := range b.Instances {
			count(out, region, w.Zone, serves(w, service))
		}
	}
	return out
}

// serves tells whether a workload answers on any port of a service.
func serves(w *mesh.Workload, service *mesh.Service) bool {
	return slices.ContainsFunc(service.Ports, func(p mesh.Port) bool { return w.Serves(w.TargetPort(p)) })
}

func count(out *admin.ServiceCluster, region, zone string, ready bool) {
	out.Total++
	place := region + "/" + zone
	if _, known := out.Localities[place]; !known {
		out.Localities[place] = 0
	}
	if ready {
		out.Healthy++
		out.Localities[place]++
	}
}

// peersInstances sums up what a peer's catalogue says; c is that catalogue.
func peersInstances(e *mesh.Exporter, c *mesh.Catalogue, now time.Time) *admin.ServiceCluster {
	out := &admin.ServiceCluster{Name: string(e.Cluster), Slots: uint32(len(e.Remote.Slots)), Localities: map[string]uint32{}}
	if c != nil && c.ReceivedUnixMs > 0 {
		out.AgeSeconds = max(0, now.Sub(time.UnixMilli(c.ReceivedUnixMs)).Seconds())
	}
	for _, slot := range e.Remote.Slots {
		out.Healthy += slot.Healthy
		out.Total += slot.Total
		out.Localities[e.Region+"/"+slot.Zone] += slot.Healthy
	}
	return out
}

func regionOf(t *mesh.Trust, c mesh.ClusterName) string {
	if m, ok := t.Member(c); ok {
		return m.Region
	}
	return ""
}

// ExportService writes, narrows or deletes the ServiceExport of a service.
func (s *meshServer) ExportService(ctx context.Context, request *admin.ExportServiceRequest) (*admin.ExportServiceResponse, error) {
	name := mesh.ServiceName{Namespace: namespaceOf(request.GetNamespace()), Name: request.GetName()}
	if request.GetUnexport() {
		return s.unexport(ctx, name, request.GetTo())
	}
	if err := exportable(s.config.Snapshot(), name); err != nil {
		return nil, err
	}
	_, err := s.config.Registry.Get(ctx, mesh.ObjectName{Kind: config.KindService, Namespace: name.Namespace, Name: name.Name})
	if errors.Is(err, config.ErrNotFound) {
		return nil, hint.Wrap(hint.Code(status.Errorf(codes.NotFound, "there is no service %s", name), "not_found"),
			"isthmus service list shows the services; apply a Service, or start an instance with isthmus workload run --service")
	} else if err != nil {
		return nil, err
	}
	var findings []mesh.Finding
	if s.config.Reckon != nil {
		findings = s.config.Reckon(name)
	}
	response, err := s.putExport(ctx, name, request.GetTo(), config.AnyVersion)
	if err != nil {
		return nil, err
	}
	response.Findings = wireFindings(findings)
	return response, nil
}

func (s *meshServer) putExport(ctx context.Context, name mesh.ServiceName, to []string, expect int64) (*admin.ExportServiceResponse, error) {
	to = slices.Compact(slices.Sorted(slices.Values(to)))
	raw, err := exportObject(name, to)
	if err != nil {
		return nil, err
	}
	if _, err := s.config.Registry.Commit(ctx, config.Change{Name: exportName(name), JSON: raw, Expect: expect}); err != nil {
		return nil, conflict(err)
	}
	return &admin.ExportServiceResponse{Exported: true, To: to}, nil
}

// unexport takes an export back from some clusters or, with none, from all.
func (s *meshServer) unexport(ctx context.Context, name mesh.ServiceName, from []string) (*admin.ExportServiceResponse, error) {
	missing := func(whom string) error {
		return hint.Wrap(hint.Code(status.Errorf(codes.NotFound, "service %s is not exported%s", name, whom), "not_exported"), "isthmus service list shows what is exported")
	}
	stored, err := s.config.Registry.Get(ctx, exportName(name))
	if errors.Is(err, config.ErrNotFound) {
		return nil, missing("")
	} else if err != nil {
		return nil, err
	}
	if len(from) > 0 {
		var export struct {
			Metadata struct {
				Annotations map[string]string `json:"annotations"`
			} `json:"metadata"`
		}
		if err := json.Unmarshal(stored.JSON, &export); err != nil {
			return nil, fmt.Errorf("decode %s: %w", exportName(name), err)
		}
		before := consumers(export.Metadata.Annotations[config.AnnotationExportTo], s.config.Snapshot().Trust)
		after := slices.DeleteFunc(slices.Clone(before), func(c string) bool { return slices.Contains(from, c) })
		if len(after) == len(before) {
			return nil, missing(" to " + strings.Join(from, ", "))
		}
		if len(after) > 0 {
			return s.putExport(ctx, name, after, stored.Version)
		}
	}
	if err := s.config.Registry.Delete(ctx, exportName(name), stored.Version); err != nil {
		return nil, conflict(err)
	}
	return &admin.ExportServiceResponse{}, nil
}

// consumers are the clusters of an export's annotation; without one, all that are members now.
func consumers(annotation string, trust *mesh.Trust) []string {
	var out []string
	if annotation != "" {
		for _, c := range strings.Split(annotation, ",") {
			out = append(out, strings.TrimSpace(c))
		}
		return out
	}
	if trust != nil {
		for _, m := range trust.Members {
			if m.Name != trust.Self {
				out = append(out, string(m.Name))
			}
		}
	}
	return out
}

func exportName(name mesh.ServiceName) mesh.ObjectName {
	return mesh.ObjectName{Kind: config.KindServiceExport, Namespace: name.Namespace, Name: name.Name}
}

// exportable says why a service cannot be exported.
func exportable(snapshot *world.Snapshot, name mesh.ServiceName) error {
	if err := name.Validate(); err != nil {
		return hint.Code(status.Error(codes.InvalidArgument, err.Error()), "invalid_name")
	}
	if err := mesh.CheckSNI(name.ClusterSetHost()); err != nil {
		return hint.Wrap(hint.Code(status.Error(codes.InvalidArgument, err.Error()), "name_too_long"), "give the service or its namespace a shorter name")
	}
	if err := granted(snapshot, name.Namespace); err != nil {
		return fmt.Errorf("export service %s: %w", name, err)
	}
	return nil
}

// exportObject is a ServiceExport, to some clusters or, with none, to all.
func exportObject(name mesh.ServiceName, to []string) ([]byte, error) {
	meta := map[string]any{"name": name.Name, "namespace": name.Namespace}
	if len(to) > 0 {
		for _, c := range to {
			if err := mesh.ClusterName(c).Validate(); err != nil {
				return nil, hint.Wrap(hint.Code(status.Error(codes.InvalidArgument, err.Error()), "invalid_name"), "name clusters as isthmus cluster list does: --to east,west")
			}
		}
		meta["annotations"] = map[string]string{config.AnnotationExportTo: strings.Join(to, ",")}
	}
	return encode(config.KindServiceExport, map[string]any{"metadata": meta})
}

// encode renders an object made here and reads it back as one that was applied:
// what would be refused there is refused here, with the first finding's words.
func encode(kindName string, object map[string]any) ([]byte, error) {
	kind, ok := config.KindNamed(kindName)
	if !ok {
		return nil, fmt.Errorf("make an object: there is no kind %s", kindName)
	}
	object["apiVersion"], object["kind"] = kind.APIVersion(), kind.Name
	raw, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	read, findings := config.Decode([]config.File{{Name: "request", Data: raw}}, "")
	for _, f := range findings {
		if f.Level == mesh.LevelError {
			return nil, hint.Wrap(hint.Code(status.Errorf(codes.InvalidArgument, "%s: %s", f.Object, f.Message), "invalid"), f.Fix)
		}
	}
	if len(read) != 1 {
		return nil, errors.New("an object made here was not read back")
	}
	return read[0].JSON, nil
}

// ProxyStatus shows what each proxy has taken.
func (s *meshServer) ProxyStatus(context.Context, *admin.ProxyStatusRequest) (*admin.ProxyStatusResponse, error) {
	response := &admin.ProxyStatusResponse{}
	if s.config.Proxies != nil {
		response.Proxies = s.config.Proxies()
	}
	return response, nil
}

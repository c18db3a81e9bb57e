package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// gatewayAccount is the service account of a gateway that names none.
const gatewayAccount = "gateway"

// labelApp ties a registered workload to its service.
const labelApp = "app"

// RegisterWorkload makes an instance known, with its service and export where
// they are missing, in one transaction, and gives the token of its proxy. An
// instance of that name that is known already is replaced: it may have died
// without a word.
func (s *meshServer) RegisterWorkload(ctx context.Context, request *admin.RegisterWorkloadRequest) (*admin.RegisterWorkloadResponse, error) {
	snapshot := s.config.Snapshot()
	if snapshot.Trust == nil || s.config.Workloads == nil {
		return nil, hint.Wrap(hint.Code(status.Error(codes.FailedPrecondition, "this control plane is in no federation, so it issues no identity"), "alone"),
			"found one with isthmus cluster init, or join one with isthmus cluster join")
	}
	w, err := checkedWorkload(request)
	if err != nil {
		return nil, err
	}
	entry := mesh.ObjectName{Kind: config.KindWorkloadEntry, Namespace: w.GetNamespace(), Name: w.GetName()}
	if w.GetTokenOnly() {
		stored, err := s.config.Registry.Get(ctx, entry)
		if errors.Is(err, config.ErrNotFound) {
			return nil, hint.Wrap(hint.Code(status.Errorf(codes.NotFound, "workload %s/%s is not registered", w.GetNamespace(), w.GetName()), "not_found"),
				"register it: isthmus workload run does")
		} else if err != nil {
			return nil, err
		}
		// The account is the registered one: a restart does not change who it is.
		value, _ := config.Compile(stored.Object())
		if registered, ok := value.(*mesh.Workload); ok {
			w.ServiceAccount = registered.ServiceAccount
		}
	} else if err := s.register(ctx, snapshot, w, entry); err != nil {
		return nil, err
	}
	token, err := s.config.Workloads.MintToken(proxyOf(w), w.GetServiceAccount())
	if err != nil {
		return nil, err
	}
	return &admin.RegisterWorkloadResponse{Token: token, WorkloadSocket: s.config.WorkloadSocket}, nil
}

// proxyOf is the proxy that a request is about.
func proxyOf(w *admin.RegisterWorkloadRequest) mesh.ProxyID {
	return mesh.ProxyID{Kind: mesh.ProxyKind(w.GetKind()), Namespace: w.GetNamespace(), Instance: w.GetName()}
}

// checkedWorkload fills in what a request may leave out, and refuses what cannot be.
func checkedWorkload(request *admin.RegisterWorkloadRequest) (*admin.RegisterWorkloadRequest, error) {
	w := &admin.RegisterWorkloadRequest{
		Kind: request.GetKind(), Namespace: namespaceOf(request.GetNamespace()), Name: request.GetName(), ServiceAccount: request.GetServiceAccount(),
		Address: request.GetAddress(), Zone: request.GetZone(), Labels: maps.Clone(request.GetLabels()), Service: request.GetService(),
		Ports: request.GetPorts(), Export: request.GetExport(), TokenOnly: request.GetTokenOnly(),
	}
	if w.Labels == nil {
		w.Labels = map[string]string{}
	}
	w.Kind = cmp.Or(w.Kind, string(mesh.Sidecar))
	gateway := proxyOf(w).Kind == mesh.EastWest
	if gateway {
		w.ServiceAccount = cmp.Or(w.ServiceAccount, gatewayAccount)
	}
	w.ServiceAccount = cmp.Or(w.ServiceAccount, config.DefaultAccount)
	invalid := func(format string, args ...any) error {
		return hint.Code(status.Errorf(codes.InvalidArgument, format, args...), "invalid")
	}
	if err := proxyOf(w).Validate(); err != nil {
		return nil, invalid("%v", err)
	}
	switch {
	case !mesh.IsLabel(w.Name):
		return nil, invalid("instance name %q is not a DNS-1123 label", w.Name)
	case !mesh.IsSubdomain(w.ServiceAccount):
		return nil, invalid("service account %q is not a DNS-1123 name", w.ServiceAccount)
	case gateway && w.Service != "":
		return nil, invalid("a gateway is an instance of no service")
	case w.Service == "" && w.Export:
		return nil, invalid("to export it takes a service")
	case w.Service != "" && w.Labels[labelApp] != "" && w.Labels[labelApp] != w.Service:
		return nil, invalid("label %s=%s contradicts service %s", labelApp, w.Labels[labelApp], w.Service)
	}
	for _, p := range w.Ports {
		switch mesh.Protocol(p.GetProtocol()) {
		case "", mesh.HTTP, mesh.GRPC, mesh.TCP:
		default:
			return nil, hint.Wrap(invalid("port %d: %q is not a protocol", p.GetNumber(), p.GetProtocol()), "use http, grpc or tcp")
		}
	}
	if w.Service != "" {
		w.Labels[labelApp] = w.Service
	}
	return w, nil
}

// register writes the workload and what is missing around it.
func (s *meshServer) register(ctx context.Context, snapshot *world.Snapshot, w *admin.RegisterWorkloadRequest, entry mesh.ObjectName) error {
	region := regionOf(snapshot.Trust, snapshot.Trust.Self)
	if other := snapshot.Workloads.At(mesh.WorkloadName{Namespace: entry.Namespace, Name: entry.Name}); other != nil && other.Ready && other.Address.String() != w.GetAddress() {
		return hint.Wrap(hint.Code(status.Errorf(codes.AlreadyExists, "workload %s/%s runs already, at %s", entry.Namespace, entry.Name, other.Address), "already_exists"),
			"choose another name, or end the other one first")
	}
	name := mesh.ServiceName{Namespace: w.GetNamespace(), Name: w.GetService()}
	if w.GetExport() {
		if err := exportable(snapshot, name); err != nil {
			return err
		}
	}
	// What another instance of the service adds at the same moment is there at the next try.
	for range 3 {
		missing, service, err := s.missingOf(ctx, w, name)
		if err != nil {
			return err
		}
		raw, err := workloadObject(w, region, service)
		if err != nil {
			return err
		}
		_, err = s.config.Registry.Commit(ctx, append(missing, config.Change{Name: entry, JSON: raw, Expect: config.AnyVersion})...)
		if _, raced := errors.AsType[*config.ConflictError](err); !raced {
			return err
		}
	}
	return hint.Wrap(hint.Code(status.Errorf(codes.Aborted, "service %s keeps changing", name), "conflict"), "try again")
}

// missingOf gives what has to be written so that the workload's service, and its
// export if asked for, exist. known is the service if it exists, and can be read.
func (s *meshServer) missingOf(ctx context.Context, w *admin.RegisterWorkloadRequest, name mesh.ServiceName) (changes []config.Change, known *mesh.Service, err error) {
	if w.GetService() == "" {
		return nil, nil, nil
	}
	service := mesh.ObjectName{Kind: config.KindService, Namespace: name.Namespace, Name: name.Name}
	stored, err := s.config.Registry.Get(ctx, service)
	switch {
	case errors.Is(err, config.ErrNotFound):
		raw, err := serviceObject(w)
		if err != nil {
			return nil, nil, err
		}
		changes = append(changes, config.Change{Name: service, JSON: raw, Expect: config.Absent})
	case err != nil:
		return nil, nil, err
	default:
		value, _ := config.Compile(stored.Object())
		known, _ = value.(*mesh.Service) // nil: its object says nothing that could be contradicted
		if err := fits(known, w); err != nil {
			return nil, nil, err
		}
	}
	if !w.GetExport() {
		return changes, known, nil
	}
	export := exportName(name)
	_, err = s.config.Registry.Get(ctx, export)
	if errors.Is(err, config.ErrNotFound) {
		raw, err := exportObject(name, nil)
		if err != nil {
			return nil, nil, err
		}
		return append(changes, config.Change{Name: export, JSON: raw, Expect: config.Absent}), known, nil
	}
	return changes, known, err
}

// fits refuses an instance that the service it names, which exists, would not have or could not use.
func fits(service *mesh.Service, w *admin.RegisterWorkloadRequest) error {
	if service == nil {
		return nil // its object says nothing that could be contradicted
	}
	refuse := func(fix, format string, args ...any) error {
		return hint.Wrap(hint.Code(status.Errorf(codes.FailedPrecondition, format, args...), "service_conflict"), fix)
	}
	if !mesh.Selected(service.Selector, w.GetLabels()) {
		return refuse("give the instance these labels: --label NAME=VALUE", "service %s picks workloads by labels %s, this one has %s",
			service.Name, labelsText(service.Selector), labelsText(w.GetLabels()))
	}
	if len(w.GetPorts()) == 0 {
		for _, p := range service.Ports {
			if p.TargetName != "" {
				return refuse("say where it is: --port "+p.TargetName+":NUMBER", "service %s leads to the port that its instances call %s, and this one names no port", service.Name, p.TargetName)
			}
		}
	}
	for _, p := range w.GetPorts() {
		at := slices.IndexFunc(service.Ports, func(have mesh.Port) bool { return leadsTo(have, p) })
		if at < 0 {
			return refuse("use one of its ports, or change the service with isthmus apply", "service %s exists and leads to %s, not to port %d",
				service.Name, portsText(service.Ports), p.GetNumber())
		}
		if have := service.Ports[at].Protocol; p.GetProtocol() != "" && mesh.Protocol(p.GetProtocol()) != have {
			return refuse("say "+string(have)+", or change the service with isthmus apply", "port %d of service %s exists and is %s, not %s",
				p.GetNumber(), service.Name, have, p.GetProtocol())
		}
	}
	return nil
}

// leadsTo tells whether a service's port leads to an instance's.
func leadsTo(have mesh.Port, p *admin.WorkloadPort) bool {
	if have.TargetName != "" {
		return have.TargetName == p.GetName()
	}
	return have.TargetPort == p.GetNumber()
}

func labelsText(labels map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ",")
}

func portsText(ports []mesh.Port) string {
	var parts []string
	for _, p := range ports {
		parts = append(parts, fmt.Sprintf("port %s (%s)", cmp.Or(p.TargetName, strconv.Itoa(int(p.TargetPort))), p.Protocol))
	}
	return strings.Join(parts, ", ")
}

// workloadObject is the instance's object. It names the ports that its service, if there is one, leads to by name.
func workloadObject(w *admin.RegisterWorkloadRequest, region string, service *mesh.Service) ([]byte, error) {
	spec := map[string]any{"serviceAccount": w.GetServiceAccount(), "labels": w.GetLabels()}
	named := map[string]uint32{}
	for _, p := range w.GetPorts() {
		if service != nil && p.GetName() != "" && slices.ContainsFunc(service.Ports, func(have mesh.Port) bool { return have.TargetName == p.GetName() }) {
			named[p.GetName()] = p.GetNumber()
		}
	}
	if len(named) > 0 {
		spec["ports"] = named
	}
	if w.GetAddress() != "" {
		spec["address"] = w.GetAddress()
	}
	if w.GetZone() != "" {
		spec["locality"] = region + "/" + w.GetZone()
	}
	return encode(config.KindWorkloadEntry, map[string]any{
		"metadata": map[string]any{"name": w.GetName(), "namespace": w.GetNamespace(), "annotations": map[string]string{config.AnnotationProxy: w.GetKind()}},
		"spec":     spec,
	})
}

func serviceObject(w *admin.RegisterWorkloadRequest) ([]byte, error) {
	var ports []map[string]any
	for _, p := range w.GetPorts() {
		port := map[string]any{"port": p.GetNumber(), "targetPort": p.GetNumber()}
		if p.GetName() != "" {
			port["name"] = p.GetName()
		}
		if p.GetProtocol() != "" {
			port["appProtocol"] = p.GetProtocol()
		}
		ports = append(ports, port)
	}
	if len(ports) == 0 {
		return nil, hint.Wrap(hint.Code(status.Errorf(codes.InvalidArgument, "service %s/%s does not exist, and no port is given to make it", w.GetNamespace(), w.GetService()), "no_port"),
			"add --port NAME:NUMBER[:http|grpc|tcp]")
	}
	return encode(config.KindService, map[string]any{
		"metadata": map[string]any{"name": w.GetService(), "namespace": w.GetNamespace()},
		"spec":     map[string]any{"selector": map[string]string{labelApp: w.GetService()}, "ports": ports},
	})
}

// DeregisterWorkload forgets an instance; one that is not known is forgotten already.
func (s *meshServer) DeregisterWorkload(ctx context.Context, request *admin.DeregisterWorkloadRequest) (*admin.DeregisterWorkloadResponse, error) {
	name := mesh.ObjectName{Kind: config.KindWorkloadEntry, Namespace: namespaceOf(request.GetNamespace()), Name: request.GetName()}
	if err := s.config.Registry.Delete(ctx, name, config.AnyVersion); err != nil && !errors.Is(err, config.ErrNotFound) {
		return nil, err
	}
	return &admin.DeregisterWorkloadResponse{}, nil
}

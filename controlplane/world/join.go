package world

import (
	"cmp"
	"reflect"
	"slices"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
)

// finish joins what the updates have changed: each index is computed here and nowhere else.
func (f *folding) finish() (state, bool) {
	s := &f.state
	s.Objects, s.Findings, s.Workloads, s.VIPs, s.Placements = f.objects.Map(), f.said.Map(), f.instances.Map(), f.vips.Map(), f.placements.Map()
	s.Rules, s.Senders = f.rules.Map(), f.senders.Map()
	f.define()
	s.services, s.workloads = f.services.close(), f.workloads.close()
	f.joinBackends()
	f.joinServing()
	f.joinLingering(f.touched, f.joinImports())
	if zones := f.zones.Map(); !zones.Same(s.zones) {
		s.zones = zones
		if names := slices.Sorted(zones.Keys()); !slices.Equal(names, s.Zones) {
			s.Zones = names
		}
	}
	s.Ready = true
	for _, source := range mesh.Sources {
		s.Ready = s.Ready && s.synced[source]
	}
	return *s, f.changed()
}

// identity is what proxies are served by; last is what they were.
func identity(trust, last *mesh.Trust) *mesh.Trust {
	if trust != nil || last == nil {
		return trust
	}
	alone := *last
	alone.Members = nil
	if self, ok := last.Member(last.Self); ok {
		alone.Members = []mesh.Member{*self}
	}
	return &alone
}

// changed tells whether a reader of the snapshot has something new to see. When a peer was last heard of is no news.
func (f *folding) changed() bool {
	a, b := &f.old.Snapshot, &f.state.Snapshot
	same := a.Objects.Same(b.Objects) && a.Services.Same(b.Services) && a.Workloads.Same(b.Workloads) && a.Backends.Same(b.Backends) && a.Serving.Same(b.Serving) &&
		a.Imports.Same(b.Imports) && a.Lingering.Same(b.Lingering) && a.Rules.Same(b.Rules) && a.Findings.Same(b.Findings) && a.VIPs.Same(b.VIPs) &&
		a.Placements.Same(b.Placements) && slices.Equal(a.Zones, b.Zones) && a.Ready == b.Ready
	return !same || f.trust
}

// define puts services together with their exports.
func (f *folding) define() {
	services := f.state.Services.Edit()
	for name := range f.redefined {
		old, _ := services.Get(name)
		service, export := f.declared(name)
		f.touched[name], f.imported[name] = true, true
		if service == nil {
			services.Drop(name)
		} else {
			defined := *service
			defined.Export = export
			services.Put(name, &defined)
		}
		if from, to := filed(old), filed(service); !slices.Equal(from, to) {
			f.services.move(name, from, to)
		}
	}
	f.state.Services = services.Map()
}

// declared are a service and its export as their objects say.
func (f *folding) declared(name mesh.ServiceName) (service *mesh.Service, export *mesh.Export) {
	if o := f.state.Objects.At(mesh.ObjectName{Kind: config.KindService, Namespace: name.Namespace, Name: name.Name}); o != nil {
		service, _ = (*o).(*mesh.Service)
	}
	if o := f.state.Objects.At(exportObject(name)); o != nil {
		export, _ = (*o).(*mesh.Export)
	}
	return service, export
}

func exportObject(name mesh.ServiceName) mesh.ObjectName {
	return mesh.ObjectName{Kind: config.KindServiceExport, Namespace: name.Namespace, Name: name.Name}
}

// joinBackends finds who is behind the services that changed, and behind those that a changed workload is or was behind.
func (f *folding) joinBackends() {
	s := &f.state
	for name := range f.moved {
		for _, w := range []*mesh.Workload{f.old.Workloads.At(name), s.Workloads.At(name)} {
			for _, service := range s.selecting(w) {
				f.touched[service.Name] = true
			}
		}
	}
	backends := s.Backends.Edit()
	for name := range f.touched {
		old, _ := backends.Get(name)
		service := s.Services.At(name)
		if service == nil {
			backends.Drop(name)
			continue
		}
		b := s.behind(service)
		if f.redefined[name] {
			f.restand(old, b)
		}
		if old == nil || !sameBackends(old, b) {
			backends.Put(name, b)
		}
	}
	for name := range f.redefined {
		if f.state.Services.At(name) == nil {
			f.restand(f.old.Backends.At(name), nil)
		}
	}
	s.Backends = backends.Map()
}

// restand marks the workloads that are or were behind a service that changed.
func (f *folding) restand(all ...*mesh.Backends) {
	for _, b := range all {
		if b != nil {
			for _, w := range b.Instances {
				f.moved[w.Name] = true
			}
		}
	}
}

// selecting are the services whose selector picks w, in no order.
func (s *state) selecting(w *mesh.Workload) []*mesh.Service {
	var out []*mesh.Service
	for _, p := range pairsOf(w) {
		for name := range s.services.at(p).Keys() {
			if service := s.Services.At(name); service != nil && mesh.Selected(service.Selector, w.Labels) {
				out = append(out, service)
			}
		}
	}
	return out
}

// behind is the join of one service.
func (s *state) behind(service *mesh.Service) *mesh.Backends {
	b := &mesh.Backends{Service: service.Name}
	var least set[mesh.WorkloadName]
	first := true
	for k, v := range service.Selector {
		if of := s.workloads.at(pair{service.Name.Namespace, k, v}); first || of.Len() < least.Len() {
			least, first = of, false
		}
	}
	for name := range least.Keys() {
		if w := s.Workloads.At(name); mesh.Selected(service.Selector, w.Labels) {
			b.Instances = append(b.Instances, w)
		}
	}
	slices.SortFunc(b.Instances, func(x, y *mesh.Workload) int { return cmp.Compare(x.Name.Name, y.Name.Name) })
	accounts := map[string]bool{}
	for _, w := range b.Instances {
		if w.ServiceAccount != "" {
			accounts[w.ServiceAccount] = true
		}
	}
	for account := range accounts {
		b.Accounts = append(b.Accounts, service.Name.Namespace+"/"+account)
	}
	slices.Sort(b.Accounts)
	if placed := s.Placements.At(service.Name); placed != nil && service.Export != nil {
		b.Slots = allocate.Live(placed.Slots, b.Instances, SubsetKeys(&s.Snapshot, service.Name), service.Ports)
		b.Served = placed.Served
	}
	return b
}

// SubsetKeys are the labels by which subsets of a service select: those that travel with its slots.
func SubsetKeys(s *Snapshot, name mesh.ServiceName) []string {
	var subsets []mesh.Subset
	if of := s.Rules.At(name.ClusterSetHost()); of != nil {
		for _, w := range of.Policies {
			for i := range w.Rule.Subsets {
				subsets = append(subsets, w.Rule.Subsets[i].Subset)
			}
		}
	}
	return allocate.Keys(subsets...)
}

func sameBackends(a, b *mesh.Backends) bool {
	return slices.Equal(a.Instances, b.Instances) && slices.Equal(a.Accounts, b.Accounts) && a.Served == b.Served && reflect.DeepEqual(a.Slots, b.Slots)
}

// joinServing finds the services of the workloads that changed. Those that stand behind the same share what says so.
func (f *folding) joinServing() {
	s := &f.state
	serving := s.Serving.Edit()
	alike := map[*mesh.Service][]*mesh.Serving{} // by the first service
	for name := range f.moved {
		w := s.Workloads.At(name)
		if w == nil {
			serving.Drop(name)
			continue
		}
		of := s.selecting(w)
		slices.SortFunc(of, func(a, b *mesh.Service) int { return compareServices(a.Name, b.Name) })
		old, had := serving.Get(name)
		switch {
		case len(of) == 0:
			serving.Drop(name)
		case !had || !slices.Equal(old.Services, of):
			i := slices.IndexFunc(alike[of[0]], func(a *mesh.Serving) bool { return slices.Equal(a.Services, of) })
			if i < 0 {
				i, alike[of[0]] = len(alike[of[0]]), append(alike[of[0]], &mesh.Serving{Services: of})
			}
			serving.Put(name, alike[of[0]][i])
		}
	}
	s.Serving = serving.Map()
}

func compareServices(a, b mesh.ServiceName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func compareObjects(a, b mesh.ObjectName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

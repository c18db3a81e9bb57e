package catalog

import (
	"crypto/sha256"
	"fmt"
	"reflect"
	"slices"

	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// View is all that an export is made from.
type View struct {
	// Trust says what this cluster may export; nil while it is in no federation.
	Trust    *mesh.Trust
	Services pmap.Map[mesh.ServiceName, mesh.Service]
	Backends pmap.Map[mesh.ServiceName, mesh.Backends]
	Rules    pmap.Map[mesh.Host, rule.Set]
	// Known is what was announced before; see [Exports.Known].
	Known pmap.Map[mesh.ServiceName, Known]
}

// Known is what an exporter has to remember of a service.
type Known struct {
	// Identities go on being announced while the service has no pods, so that clients do not refuse the first one that
	// comes back.
	Identities []string
	// Served is [mesh.ExportedService].Served.
	Served bool
}

// Exports are the services this cluster exports, encoded. The value is immutable and shares with the one it was made
// from all that is the same; the zero Exports exports nothing.
type Exports struct {
	// Work is what the last step took.
	Work Work

	// offers are the services that have an export, by name; made is what became of each.
	offers []*offer
	made   []made
	// entries are what is announced.
	entries  []*entry
	findings []mesh.Finding
	// full is what all offers multiply to, size the bytes of entries. Tight is set where the limits of either changed
	// what is announced.
	full, size int
	tight      bool
}

// offer is a service as this cluster would announce it. An offer is the same pointer as long as it says the same.
type offer struct {
	name mesh.ServiceName
	// service is nil if it may not be announced: see refused.
	service *mesh.ExportedService
	refused mesh.Finding
	subsets []mesh.Subset
	cost    Cost
}

// made is an offer after its verdict: an entry or a finding, or both where the service is reduced.
type made struct {
	verdict Verdict
	entry   *entry
	finding *mesh.Finding
}

// From makes the exports of a view from nothing.
func From(v View) Exports { return Exports{}.Step(View{}, v) }

// Step makes the exports of a view out of those of an older one. It looks only at services whose service, backends,
// rules or memory are other pointers than before, unless the grants of this cluster changed; and encodes only those
// that are to be announced otherwise. Step(From(a), a, b) equals From(b).
func (e Exports) Step(old, new View) Exports {
	self := selfOf(new.Trust)
	if self == nil {
		return Exports{}
	}
	fresh := map[mesh.ServiceName]*offer{}
	for name := range changes(old, new, e.offers) {
		o, had := offerOf(self, name, new), e.offer(name)
		if (o != nil || had != nil) && !reflect.DeepEqual(o, had) {
			fresh[name] = o
		}
	}
	if len(fresh) == 0 {
		e.Work = Work{}
		return e
	}
	if next, ok := e.replace(fresh, self.Name); ok {
		return next
	}
	next := Exports{offers: merge(e.offers, fresh)}
	for _, o := range next.offers {
		next.full += o.cost.Full
	}
	verdicts := judgeOffers(next.offers)
	next.tight = verdicts != nil
	next.make(e, verdicts, self.Name)
	next.announce()
	return next
}

// offer gives the offer of that name; nil if there is none.
func (e *Exports) offer(name mesh.ServiceName) *offer {
	if at, ok := e.at(name); ok {
		return e.offers[at]
	}
	return nil
}

func (e *Exports) at(name mesh.ServiceName) (int, bool) {
	return slices.BinarySearchFunc(e.offers, name, func(o *offer, n mesh.ServiceName) int { return compareNames(o.name, n) })
}

// replace is the step in which services that were announced whole go on being so, otherwise: all of the rest stays where
// it is. False: it is not that step.
func (e *Exports) replace(fresh map[mesh.ServiceName]*offer, self mesh.ClusterName) (Exports, bool) {
	full := e.full
	for name, o := range fresh {
		at, had := e.at(name)
		if !had || o == nil || o.service == nil || e.made[at].entry == nil {
			return Exports{}, false
		}
		full += o.cost.Full - e.offers[at].cost.Full
	}
	if e.tight || full > Products {
		return Exports{}, false
	}
	next := Exports{
		offers: slices.Clone(e.offers), made: slices.Clone(e.made), entries: slices.Clone(e.entries),
		findings: e.findings, full: full, size: e.size,
	}
	for name, o := range fresh {
		at, _ := e.at(name)
		announced, _ := find(e.entries, name)
		m := o.make(Whole, self, e.made[at], &next.Work)
		if m.entry == nil {
			return Exports{}, false
		}
		next.offers[at], next.made[at], next.entries[announced] = o, m, m.entry
		next.size += len(m.entry.encoded) - len(e.made[at].entry.encoded)
	}
	return next, next.size <= MaxBytes-perCatalogue
}

func selfOf(t *mesh.Trust) *mesh.Member {
	if t == nil {
		return nil
	}
	self, _ := t.Member(t.Self)
	return self
}

// changes gives the names whose offers have to be made anew.
func changes(old, new View, offers []*offer) map[mesh.ServiceName]bool {
	changed := map[mesh.ServiceName]bool{}
	before, now := selfOf(old.Trust), selfOf(new.Trust)
	if before == nil || before.Name != now.Name || !slices.Equal(before.Namespaces, now.Namespaces) {
		for name := range new.Services.Keys() {
			changed[name] = true
		}
		for _, o := range offers {
			changed[o.name] = true
		}
		return changed
	}
	for name := range pmap.Diff(old.Services, new.Services) {
		changed[name] = true
	}
	for name := range pmap.Diff(old.Backends, new.Backends) {
		changed[name] = true
	}
	for name := range pmap.Diff(old.Known, new.Known) {
		changed[name] = true
	}
	for host := range pmap.Diff(old.Rules, new.Rules) {
		if name, _, ok := mesh.ParseHost(host); ok {
			changed[name] = true
		}
	}
	return changed
}

// merge gives offers with the fresh ones in their places; nil ones are gone.
func merge(offers []*offer, fresh map[mesh.ServiceName]*offer) []*offer {
	next := make([]*offer, 0, len(offers)+len(fresh))
	for _, o := range offers {
		if _, replaced := fresh[o.name]; !replaced {
			next = append(next, o)
		}
	}
	for _, o := range fresh {
		if o != nil {
			next = append(next, o)
		}
	}
	slices.SortFunc(next, func(a, b *offer) int { return compareNames(a.name, b.name) })
	return next
}

func judgeOffers(offers []*offer) []Verdict {
	costs := make([]Cost, len(offers))
	for i, o := range offers {
		costs[i] = o.cost // nothing for a refused one
	}
	return Judge(costs, Products)
}

// make fills made; what became of an offer before is kept where offer and verdict are the same.
func (e *Exports) make(before Exports, verdicts []Verdict, self mesh.ClusterName) {
	e.made = make([]made, len(e.offers))
	j := 0
	for i, o := range e.offers {
		verdict := Whole
		if verdicts != nil {
			verdict = verdicts[i]
		}
		for j < len(before.offers) && compareNames(before.offers[j].name, o.name) < 0 {
			j++
		}
		var was made
		if j < len(before.offers) && before.offers[j].name == o.name {
			if was = before.made[j]; before.offers[j] == o && was.verdict == verdict {
				e.made[i] = was
				continue
			}
		}
		e.made[i] = o.make(verdict, self, was, &e.Work)
	}
}

// make gives what becomes of an offer; was is what became of its name before.
func (o *offer) make(v Verdict, self mesh.ClusterName, was made, work *Work) made {
	m := made{verdict: v}
	if o.service == nil {
		m.finding = &o.refused
		return m
	}
	service := o.service
	if v != Whole {
		f := overBudget(exportSide, o.cost, v, self)
		m.finding = &f
	}
	switch v {
	case LeftOut:
		return m
	case Reduced:
		service = reduce(service, self, o.subsets)
	}
	encoded, err := encode(service)
	work.Encoded++
	if err != nil {
		f := invalid(o.name, err)
		return made{verdict: v, finding: &f}
	}
	work.Hashed++
	m.entry = &entry{name: o.name, hash: sha256.Sum256(encoded), encoded: encoded, service: service}
	if was.entry != nil && was.entry.hash == m.entry.hash {
		m.entry = was.entry // what is new about it is not announced
	}
	return m
}

// announce takes what fits one catalogue.
func (e *Exports) announce() {
	for i, m := range e.made {
		if m.finding != nil {
			e.findings = append(e.findings, *m.finding)
		}
		if m.entry == nil {
			continue
		}
		if more := len(m.entry.encoded) + perService; len(e.entries) < MaxServices && e.size+more <= MaxBytes-perCatalogue {
			e.size += more
			e.entries = append(e.entries, m.entry)
			continue
		}
		e.tight = true
		e.findings = append(e.findings, mesh.Finding{
			Code: mesh.CodeExportTooMany, Level: mesh.LevelError, Object: "Service " + e.offers[i].name.String(),
			Message: fmt.Sprintf("a cluster exports at most %d services of %d MiB together", MaxServices, MaxBytes>>20),
			Fix:     "unexport services nobody calls, or split the cluster",
		})
	}
}

// Findings says which services are not announced, or not as they are, by name.
func (e Exports) Findings() []mesh.Finding { return e.findings }

// Services gives what is announced, by name.
func (e Exports) Services() []*mesh.ExportedService {
	out := make([]*mesh.ExportedService, len(e.entries))
	for i, entry := range e.entries {
		out[i] = entry.service
	}
	return out
}

// Known gives what [View].Known wants next time, out of what it was: of each service that has an export its last
// identities, and whether it was ever served. Unexport forgets.
func (e Exports) Known(before pmap.Map[mesh.ServiceName, Known]) pmap.Map[mesh.ServiceName, Known] {
	edit, exported := before.Edit(), make(map[mesh.ServiceName]bool, len(e.offers))
	for _, o := range e.offers {
		exported[o.name] = true
		if s := o.service; s != nil && (len(s.Identities) > 0 || s.Served) {
			if old := before.At(o.name); old == nil || old.Served != s.Served || !slices.Equal(old.Identities, s.Identities) {
				edit.Put(o.name, &Known{Identities: s.Identities, Served: s.Served})
			}
		}
	}
	for name := range before.Keys() {
		if !exported[name] {
			edit.Drop(name)
		}
	}
	return edit.Map()
}

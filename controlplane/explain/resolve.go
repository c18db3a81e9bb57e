package explain

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/nearest"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// Codes of errors of a question.
const (
	CodeNoWorkload = "no_such_workload"
	CodeNoHost     = "no_such_host"
	CodeAlone      = "alone"
)

// who finds the caller, what it is called, and what its proxy has.
func (q *question) who() error {
	trust := q.Snapshot.Identity
	if trust == nil {
		return hint.Wrap(hint.Code(errors.New("this cluster is in no federation, so its proxies have no configuration"), CodeAlone),
			"found one with isthmus cluster init, or join one with isthmus cluster join")
	}
	w, how, err := q.find()
	if err != nil {
		return err
	}
	q.caller, q.out.From = w, w.Name
	account := cmp.Or(q.call.Account, w.ServiceAccount)
	q.identity = mesh.WorkloadID(mesh.TrustDomainOf(trust.Self, trust.Federation), w.Name.Namespace, account).String()
	if _, err := mesh.ParseSPIFFEID(q.identity); err != nil {
		return hint.Wrap(hint.Code(fmt.Errorf("service account %q: %w", account, err), CodeNoWorkload), "name a service account: lower-case letters, digits, '-' and '.'")
	}
	q.state, _ = q.Plan.For(mesh.ProxyID{Kind: mesh.Sidecar, Namespace: w.Name.Namespace, Instance: w.Name.Name}, build.Own{})
	reason := fmt.Sprintf("workload %s of cluster %s%s, service account %s", w.Name, trust.Self, how, account)
	if q.call.Account != "" && q.call.Account != w.ServiceAccount {
		reason += " instead of its own, " + w.ServiceAccount
	}
	q.step(Identity, Origin{}, nil, q.identity, reason)
	return nil
}

// find gives the instance that a call is from; how says by what it was found, if not by its name.
func (q *question) find() (w *mesh.Workload, how string, err error) {
	var names []mesh.WorkloadName
	if namespace, instance, ok := strings.Cut(q.call.From, "/"); ok { // as proxy status prints it
		names = append(names, mesh.WorkloadName{Namespace: namespace, Name: instance})
	} else if i := strings.LastIndexByte(q.call.From, '.'); i > 0 {
		names = append(names, mesh.WorkloadName{Namespace: q.call.From[i+1:], Name: q.call.From[:i]})
	}
	names = append(names, mesh.WorkloadName{Namespace: q.call.Namespace, Name: q.call.From}) // a name may have dots
	for _, name := range names {
		if w := q.Snapshot.Workloads.At(name); w != nil {
			return w, "", nil
		}
	}
	for _, name := range names {
		if all := q.group(name); len(all) > 0 {
			return all[0], fmt.Sprintf(" (%s is no instance's name: the first of %d that it describes)", q.call.From, len(all)), nil
		}
	}
	missing := hint.Code(fmt.Errorf("there is no workload %s in namespace %s of this cluster", names[0].Name, names[0].Namespace), CodeNoWorkload)
	var known []string
	for name := range q.Snapshot.Workloads.Keys() {
		known = append(known, name.Name+"."+name.Namespace)
	}
	return nil, "", hint.Wrap(missing, similar(names[0].Name+"."+names[0].Namespace, known,
		"isthmus get workloadentry -A shows the workloads; --from takes INSTANCE.NAMESPACE"))
}

// group are the instances that a name describes which is none's own, by name.
func (q *question) group(name mesh.WorkloadName) []*mesh.Workload {
	var out []*mesh.Workload
	if b := q.Snapshot.Backends.At(mesh.ServiceName(name)); b != nil {
		return b.Instances
	}
	for of, w := range q.Snapshot.Workloads.All() {
		if of.Namespace == name.Namespace && (w.Labels["app"] == name.Name || w.ServiceAccount == name.Name) {
			out = append(out, w)
		}
	}
	slices.SortFunc(out, func(a, b *mesh.Workload) int { return cmp.Compare(a.Name.Name, b.Name.Name) })
	return out
}

// where finds the virtual address of the host and the port, as the agent's DNS does (proxy/dns).
func (q *question) where() (netip.AddrPort, error) {
	address, host, err := q.resolve()
	if err != nil {
		return netip.AddrPort{}, err
	}
	q.out.Host, q.out.Port = host, cmp.Or(q.call.Port, q.onlyPort(address))
	return netip.AddrPortFrom(address, uint16(q.out.Port)), nil
}

// resolve asks the name table of the caller's proxy.
func (q *question) resolve() (netip.Addr, mesh.Host, error) {
	asked := strings.ToLower(strings.TrimSuffix(q.call.Host, "."))
	if address, err := netip.ParseAddr(asked); err == nil {
		for r := range q.state.All(xds.NameTableType) {
			if host, at, err := named(r); err == nil && at == address {
				return address, host, nil
			}
		}
		return address, mesh.Host(asked), nil
	}
	for _, name := range candidates(asked, q.caller.Name.Namespace) {
		if r, ok := q.state.Get(xds.NameTableType, name); ok {
			host, address, err := named(r)
			return address, host, err
		}
	}
	var known []string
	for r := range q.state.All(xds.NameTableType) {
		known = append(known, r.Name)
	}
	return netip.Addr{}, "", hint.Wrap(hint.Code(fmt.Errorf("no name %s is known to %s", q.call.Host, q.caller.Name), CodeNoHost),
		similar(candidates(asked, q.caller.Name.Namespace)[0], known, "isthmus service list shows the hosts; a service of another cluster has to be exported to this one"))
}

// candidates are the names that a name may be short for, itself last.
func candidates(name, namespace string) []string {
	local := mesh.ClusterLocalDomain
	switch labels := strings.Split(name, "."); {
	case len(labels) == 1:
		return []string{name + "." + namespace + "." + local, name}
	case len(labels) == 2:
		return []string{name + "." + local, name}
	case len(labels) == 3 && labels[2] == "svc":
		return []string{name + strings.TrimPrefix(local, "svc"), name}
	}
	return []string{name}
}

// named decodes a resource of the name table: one host and its address.
func named(r xds.Resource) (mesh.Host, netip.Addr, error) {
	table, err := decode[*workload.NameTable](r.Body)
	if err != nil {
		return "", netip.Addr{}, err
	}
	for host, text := range table.GetAddresses() {
		address, err := netip.ParseAddr(text)
		if err != nil { // none was allocated yet
			return "", netip.Addr{}, hint.Wrap(hint.Code(fmt.Errorf("%s has no virtual address yet", host), CodeNoHost), "try again in a second")
		}
		return mesh.Host(host), address, nil
	}
	return "", netip.Addr{}, fmt.Errorf("the name table has nothing of %s", r.Name)
}

// onlyPort is the port of a virtual address that has one, or 80.
func (q *question) onlyPort(address netip.Addr) uint32 {
	var found []uint32
	for r := range q.state.All(xds.ListenerType) {
		var port uint32
		if rest, ok := strings.CutPrefix(r.Name, address.String()+"_"); ok {
			if _, err := fmt.Sscanf(rest, "%d", &port); err == nil {
				found = append(found, port)
			}
		}
	}
	if len(found) == 1 {
		return found[0]
	}
	return 80
}

// longestName is that of DNS; nothing like a longer one is looked for.
const longestName = 253

// similar suggests the known name that is nearest to one, of which a third of the first label may be otherwise; and says how to find
// out.
func similar(name string, known []string, otherwise string) string {
	label, _, _ := strings.Cut(name, ".")
	best, distance := "", len(label)/3+1
	if len(name) > longestName {
		return otherwise
	}
	slices.Sort(known)
	for _, k := range known {
		if d := nearest.Distance(name, k); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return otherwise
	}
	return fmt.Sprintf("did you mean %s? %s", best, otherwise)
}

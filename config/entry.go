package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"isthmus.dev/isthmus/mesh"
)

// entry is what a WorkloadEntry says, whichever way it was read.
type entry struct {
	address, account, locality string
	ports                      map[string]uint32
	labels                     map[string]string
}

// fault is a value of an object that cannot be right, with the steps that lead to it from the root.
type fault struct {
	steps   []any
	message string
}

// workload is the instance that an entry describes, and what is wrong with it.
func (e *entry) workload(name mesh.WorkloadName) (w *mesh.Workload, faults []fault) {
	wrong := func(message string, steps ...any) { faults = append(faults, fault{steps, message}) }
	w = &mesh.Workload{Name: name, ServiceAccount: e.account, Ports: e.ports, Labels: e.labels, Ready: true}
	if w.ServiceAccount == "" {
		w.ServiceAccount = DefaultAccount
	}
	if !mesh.IsSubdomain(w.ServiceAccount) {
		wrong(fmt.Sprintf("service account %q is not a DNS-1123 name", w.ServiceAccount), "spec", "serviceAccount")
	}
	addr, err := netip.ParseAddr(e.address)
	if err != nil || !addr.Is4() || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() {
		wrong(fmt.Sprintf("address %q is not a workload's IPv4 address", e.address), "spec", "address")
	}
	w.Address = addr
	for port, n := range e.ports {
		if n < 1 || n > 65535 {
			wrong(fmt.Sprintf("port %d is not in 1..65535", n), "spec", "ports", port)
		}
	}
	// Istio writes region/zone/subzone; the region is the federation document's affair.
	_, rest, _ := strings.Cut(e.locality, "/")
	w.Zone, _, _ = strings.Cut(rest, "/")
	if strings.Count(e.locality, "/") > 2 || len(e.locality) > 253 {
		wrong(fmt.Sprintf("locality %q is not region/zone", e.locality), "spec", "locality")
	}
	return w, faults
}

// maxShared bounds what a Compiler keeps to be shared; beyond it starts anew.
const maxShared = 1 << 14

// Compiler is [Compile] for many objects. What they say alike, as the instances of a service do, it makes once: a control
// plane holds a hundred thousand of them. The zero Compiler is ready. It is for one goroutine, its results are for many.
type Compiler struct {
	words  map[string]string
	labels map[string]map[string]string // by their JSON
	ports  map[string]map[string]uint32 // by their JSON
}

// Compile gives what [Compile] gives. What results share must not be changed.
func (c *Compiler) Compile(o Object) (value any, findings []mesh.Finding) {
	if o.Kind == KindWorkloadEntry {
		if w, ok := c.instance(o); ok {
			return w, nil
		}
	}
	return Compile(o)
}

// instance reads a WorkloadEntry in the form in which most are stored: plain JSON, nothing in it but what an instance with a
// sidecar needs, and nothing wrong. ok is false for any other; decode then says what it means, or what is wrong.
func (c *Compiler) instance(o Object) (w *mesh.Workload, ok bool) {
	if len(o.JSON) > MaxObject/8 || !mesh.IsSubdomain(o.Name) { // written again with every escape it would still fit
		return nil, false
	}
	if len(c.words)+len(c.labels)+len(c.ports) > maxShared {
		*c = Compiler{}
	}
	var (
		e                            entry
		version, kind, name, proxy   string
		p                            = plainJSON{in: o.JSON}
		namespace                    = o.Namespace
		root, meta, spec, annotation fields
	)
	p.object(func(key []byte) {
		switch root.once(&p, key, "apiVersion", "kind", "metadata", "spec") {
		case 0:
			version = c.word(p.text())
		case 1:
			kind = c.word(p.text())
		case 2:
			p.object(func(key []byte) {
				switch meta.once(&p, key, "name", "namespace", "annotations") {
				case 0:
					name = one(p.text(), o.Name)
				case 1:
					namespace = one(p.text(), o.Namespace)
				case 2:
					p.object(func(key []byte) {
						if annotation.once(&p, key, AnnotationProxy) == 0 {
							proxy = c.word(p.text())
						}
					})
				}
			})
		case 3:
			p.object(func(key []byte) {
				switch spec.once(&p, key, "address", "serviceAccount", "locality", "labels", "ports") {
				case 0:
					e.address = string(p.text())
				case 1:
					e.account = c.word(p.text())
				case 2:
					e.locality = c.word(p.text())
				case 3:
					e.labels = shared(&p, &c.labels, func() string { return c.word(p.text()) })
				case 4:
					e.ports = shared(&p, &c.ports, p.number)
				}
			})
		}
	})
	group, version, _ := strings.Cut(version, "/")
	if known := kinds()[KindWorkloadEntry]; !p.ended() || kind != KindWorkloadEntry || group != known.Group || !slices.Contains(known.Versions, version) ||
		mesh.ProxyKind(proxy) != mesh.Sidecar || name == "" || !mesh.IsLabel(namespace) {
		return nil, false
	}
	w, faults := e.workload(mesh.WorkloadName{Namespace: namespace, Name: name})
	return w, len(faults) == 0
}

// word gives one string for all equal ones.
func (c *Compiler) word(text []byte) string {
	if s, ok := c.words[string(text)]; ok {
		return s
	}
	if c.words == nil {
		c.words = map[string]string{}
	}
	s := string(text)
	c.words[s] = s
	return s
}

// shared reads an object of values; one whose text was read before is not made again. A table of it is made on first use.
func shared[V any](p *plainJSON, known *map[string]map[string]V, value func() V) map[string]V {
	from := *p
	p.object(func([]byte) { value() })
	text := from.in[from.at:p.at]
	if m, ok := (*known)[string(text)]; ok || p.bad {
		return m
	}
	m, n := map[string]V{}, 0
	*p = from
	p.object(func(key []byte) {
		m[string(key)] = value()
		n++
	})
	if n == 0 || n > maxElements || len(m) != n {
		p.bad = true
	}
	if *known == nil {
		*known = map[string]map[string]V{}
	}
	if !p.bad {
		(*known)[string(text)] = m
	}
	return m
}

// one gives a string that is known already for a text that equals it; else an empty one.
func one(text []byte, known string) string {
	if string(text) == known {
		return known
	}
	return ""
}

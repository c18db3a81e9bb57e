package config

import (
	"slices"
	"time"

	"isthmus.dev/isthmus/mesh"
)

// What a producer may decide is bounded: its rules run in other clusters' proxies.
const (
	maxProducerRules     = 8 // of each kind, for one service
	maxProducerAttempts  = 5
	maxProducerTimeout   = 15 * time.Minute
	maxProducerPerTry    = time.Minute
	minProducerConnect   = 50 * time.Millisecond
	maxProducerConnect   = 5 * time.Second
	maxProducerEjection  = 5 * time.Minute
	minProducerInterval  = 100 * time.Millisecond
	maxProducerInterval  = time.Minute
	maxProducerHeader    = 256 // bytes of a header match
	maxProducerRuleBytes = 64 << 10
)

// Producer parses the rules that cluster c sends along with an export and restricts them to what a producer may
// decide: the routes of the host that is exported, to that host and its subsets, with bounded retries, timeouts, pools
// and outlier detection. A rule that goes further is quarantined alone: it is left out with a finding.
func Producer(c mesh.ClusterName, svc *mesh.ExportedService) *mesh.ProducerRules {
	out := &mesh.ProducerRules{}
	r := &report{}
	p := &producer{cluster: c, service: svc.Name, r: r}
	for i, raw := range svc.VirtualServices {
		if it := p.decode(raw, i); it != nil && it.virtualService != nil {
			if vs := p.virtualService(it); vs != nil {
				out.VirtualServices = append(out.VirtualServices, vs)
			}
		}
	}
	for i, raw := range svc.DestinationRules {
		if it := p.decode(raw, i); it != nil && it.destinationRule != nil {
			if dr := p.destinationRule(it); dr != nil {
				out.DestinationRules = append(out.DestinationRules, dr)
			}
		}
	}
	out.Findings = r.findings
	return out
}

// producer restricts the rules of one exported service.
type producer struct {
	cluster mesh.ClusterName
	service mesh.ServiceName
	r       *report
}

func (p *producer) decode(raw []byte, index int) *item {
	name := "exported by " + string(p.cluster)
	switch {
	case index >= maxProducerRules:
		if index == maxProducerRules {
			p.quarantine(mesh.ObjectName{Namespace: p.service.Namespace, Name: p.service.Name}, "", "more than %d rules of one kind", maxProducerRules)
		}
		return nil
	case len(raw) > maxProducerRuleBytes:
		p.quarantine(mesh.ObjectName{Namespace: p.service.Namespace, Name: p.service.Name}, "", "a rule of %d bytes, %d at most", len(raw), maxProducerRuleBytes)
		return nil
	}
	docs := documents(File{Name: name, Data: raw}, p.r)
	if len(docs) != 1 {
		return nil
	}
	return decode(docs[0], p.service.Namespace, p.r)
}

func (p *producer) quarantine(o mesh.ObjectName, path, format string, args ...any) {
	p.r.file = "exported by " + string(p.cluster)
	place{r: p.r, object: o.String()}.level(mesh.LevelWarning, CodeProducer, "", path, format, args...)(
		"the rule is not used here; the operators of cluster %s can change it", p.cluster)
}

// mine tells whether a host is the one that is exported, by either name.
func (p *producer) mine(h mesh.Host) bool {
	return h == p.service.LocalHost() || h == p.service.ClusterSetHost()
}

func (p *producer) virtualService(it *item) *mesh.VirtualService {
	vs := *it.virtualService
	vs.Hosts = slices.DeleteFunc(slices.Clone(vs.Hosts), func(h mesh.Host) bool { return !p.mine(h) })
	if len(vs.Hosts) == 0 {
		p.quarantine(vs.Object, "spec.hosts", "the rule is not for %s, the service it came with", p.service)
		return nil
	}
	for i := range vs.HTTP {
		r := &vs.HTTP[i]
		if !p.destinations(vs.Object, r.Destinations) || !p.matches(vs.Object, r.Matches) {
			return nil
		}
		r.Timeout = min(r.Timeout, maxProducerTimeout)
		if r.Retries != nil {
			r.Retries.Attempts = min(r.Retries.Attempts, maxProducerAttempts)
			r.Retries.PerTryTimeout = min(r.Retries.PerTryTimeout, maxProducerPerTry)
		}
	}
	for _, r := range vs.TCP {
		if !p.destinations(vs.Object, r.Destinations) {
			return nil
		}
	}
	return &vs
}

func (p *producer) destinations(o mesh.ObjectName, destinations []mesh.Destination) bool {
	for _, d := range destinations {
		if !p.mine(d.Host) {
			p.quarantine(o, "spec.http", "a producer may route only to the service it exports, not to %s", d.Host)
			return false
		}
	}
	return true
}

func (p *producer) matches(o mesh.ObjectName, matches []mesh.HTTPMatch) bool {
	for _, m := range matches {
		for _, headers := range []map[string]mesh.StringMatch{m.Headers, m.WithoutHeaders} {
			for name, s := range headers {
				if len(name)+len(s.Value) > maxProducerHeader {
					p.quarantine(o, "spec.http.match.headers", "a match of more than %d bytes", maxProducerHeader)
					return false
				}
			}
		}
	}
	return true
}

func (p *producer) destinationRule(it *item) *mesh.DestinationRule {
	dr := *it.destinationRule
	if !p.mine(dr.Host) {
		p.quarantine(dr.Object, "spec.host", "the rule is not for %s, the service it came with", p.service)
		return nil
	}
	restrict(&dr.Policy)
	for i := range dr.Subsets {
		restrict(&dr.Subsets[i].Policy)
	}
	return &dr
}

// restrict bounds a policy. Where to fail over to is the consumer's decision alone.
func restrict(p *mesh.TrafficPolicy) {
	p.LocalityLB = nil
	if c := p.ConnectionPool; c != nil {
		if c.ConnectTimeout != 0 {
			c.ConnectTimeout = min(max(c.ConnectTimeout, minProducerConnect), maxProducerConnect)
		}
	}
	if o := p.OutlierDetection; o != nil {
		if o.Interval != 0 {
			o.Interval = min(max(o.Interval, minProducerInterval), maxProducerInterval)
		}
		o.BaseEjectionTime = min(o.BaseEjectionTime, maxProducerEjection)
	}
}

package config

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	istio "istio.io/api/networking/v1alpha3"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// What a producer may decide is bounded: its rules run in other clusters' proxies. A time-out or a limit below its floor
// would break the callers of the service, wherever they are.
const (
	maxProducerRules     = 8 // of each kind, for one service
	maxProducerAttempts  = 5
	minProducerTimeout   = 100 * time.Millisecond
	maxProducerTimeout   = 15 * time.Minute
	minProducerPerTry    = 25 * time.Millisecond
	maxProducerPerTry    = time.Minute
	minProducerConnect   = 50 * time.Millisecond
	maxProducerConnect   = 5 * time.Second
	minProducerIdle      = time.Second
	minProducerLimit     = 8 // of connections, requests and retries
	maxProducerEjection  = 5 * time.Minute
	minProducerInterval  = 100 * time.Millisecond
	maxProducerInterval  = time.Minute
	maxProducerMatch     = 256 // bytes of a pattern, with the name of its header
	maxProducerProgram   = 512 // of one regular expression, see programSize
	maxProducerRuleBytes = 64 << 10
)

// Producer compiles the rules that cluster c sends along with an export and restricts them to what a producer may
// decide: the routes of the host that is exported, to that host and its subsets, with bounded retries, time-outs, pools
// and outlier detection. A rule that goes further is quarantined alone: it is left out with a finding.
func Producer(c mesh.ClusterName, svc *mesh.ExportedService) *rule.Producer {
	out := &rule.Producer{Cluster: c}
	p := &producer{cluster: c, service: svc.Name, r: &report{}, dropped: map[string]bool{}}
	for i, raw := range svc.DestinationRules {
		if o := p.compile(raw, i); o != nil && o.Policy != nil {
			out.Policies = append(out.Policies, o.Policy)
		}
	}
	for i, raw := range svc.VirtualServices {
		if o := p.compile(raw, i); o != nil && o.Traffic != nil {
			out.Traffic = append(out.Traffic, o.Traffic)
		}
	}
	out.Patterns, out.Found = p.patterns, p.r.findings
	return out
}

// producer restricts the rules of one exported service.
type producer struct {
	cluster  mesh.ClusterName
	service  mesh.ServiceName
	r        *report
	patterns int             // what the regular expressions of all its rules come to
	dropped  map[string]bool // subsets that were left out
}

func (p *producer) file() string { return "exported by " + string(p.cluster) }

func (p *producer) compile(raw []byte, index int) *rule.Object {
	p.r.begin(p.file())
	about := mesh.ObjectName{Kind: KindService, Namespace: p.service.Namespace, Name: p.service.Name}
	switch {
	case index >= maxProducerRules:
		if index == maxProducerRules {
			p.quarantine(about, "", "more than %d rules of one kind", maxProducerRules)
		}
		return nil
	case len(raw) > maxProducerRuleBytes:
		p.quarantine(about, "", "a rule of %d bytes, %d at most", len(raw), maxProducerRuleBytes)
		return nil
	}
	r := &report{}
	docs := documents(File{Name: p.file(), Data: raw}, r)
	var it *item
	if len(docs) == 1 {
		it = decodeBy(docs[0], p.service.Namespace, p, r)
	}
	// What is an error at home is no error of this cluster: nothing here can be mended here.
	for _, f := range r.findings {
		if f.Level != mesh.LevelInfo {
			f.Level, f.Code, f.Fix = mesh.LevelWarning, mesh.CodeProducer, p.fix()
		}
		p.r.findings = append(p.r.findings, f)
	}
	if it == nil {
		return nil
	}
	o, _ := it.Value.(*rule.Object)
	if o == nil || o.Name.Namespace != p.service.Namespace {
		return nil
	}
	return o
}

func (p *producer) fix() string {
	return "the rule is not used here; the operators of cluster " + string(p.cluster) + " can change it"
}

func (p *producer) quarantine(o mesh.ObjectName, path, format string, args ...any) {
	p.r.file = p.file()
	place{r: p.r, object: o.String()}.level(mesh.LevelWarning, mesh.CodeProducer, "", path, format, args...)("%s", p.fix())
}

// clamped says that a value counts as another.
func (p *producer) clamped(m *maker, path string, was, is any) {
	p.r.file = p.file()
	place{r: p.r, object: m.item.ID().String()}.level(mesh.LevelInfo, mesh.CodeProducer, "", path, "%v counts as %v here", was, is)(
		"what a producer may decide for other clusters is bounded: docs/reference/%s.md", m.item.Kind)
}

// restrict bounds a rule before it is lowered; false quarantines it. Nobody restricts an own rule: the nil producer.
func (p *producer) restrict(m *maker, spec proto.Message) bool {
	if p == nil {
		return true
	}
	switch spec := spec.(type) {
	case *istio.VirtualService:
		return p.virtualService(m, spec)
	case *istio.DestinationRule:
		return p.destinationRule(m, spec)
	}
	return false
}

// mine tells whether a host, as an object of the service's namespace names it, is the one that is exported.
func (p *producer) mine(host string) bool {
	return host == p.service.Name || host == string(p.service.LocalHost()) || host == string(p.service.ClusterSetHost())
}

func (p *producer) virtualService(m *maker, vs *istio.VirtualService) bool {
	vs.Hosts = slices.DeleteFunc(vs.Hosts, func(h string) bool { return !p.mine(h) })
	if len(vs.Hosts) == 0 {
		p.quarantine(m.item.ID(), "spec.hosts", "the rule is not for %s, the service it came with", p.service)
		return false
	}
	set := string(p.service.ClusterSetHost())
	home := !slices.ContainsFunc(vs.Hosts, func(h string) bool { return h != set })
	for i, r := range vs.Http {
		for j, d := range r.Route {
			if !p.destination(m, d.GetDestination(), home, m.path("spec", "http", i, "route", j)) {
				return false
			}
		}
		if !p.matches(m, r, i) {
			return false
		}
		p.duration(m, r.Timeout, minProducerTimeout, maxProducerTimeout, "spec", "http", i, "timeout")
		if r.Retries != nil {
			p.duration(m, r.Retries.PerTryTimeout, minProducerPerTry, maxProducerPerTry, "spec", "http", i, "retries", "perTryTimeout")
			if n := r.Retries.Attempts; n > maxProducerAttempts {
				r.Retries.Attempts = maxProducerAttempts
				p.clamped(m, m.path("spec", "http", i, "retries", "attempts"), n, maxProducerAttempts)
			}
		}
	}
	for i, r := range vs.Tcp {
		for j, d := range r.Route {
			if !p.destination(m, d.GetDestination(), home, m.path("spec", "tcp", i, "route", j)) {
				return false
			}
		}
	}
	return true
}

// destination tells whether a producer may send requests there. Home says that the rule was written for the clusterset
// name alone: its local name then means the pods of the cluster that wrote it, which is for that cluster's callers.
func (p *producer) destination(m *maker, d *istio.Destination, home bool, path string) bool {
	switch {
	case d == nil:
		return true // found when it is lowered
	case !p.mine(d.Host):
		p.quarantine(m.item.ID(), path, "a producer may route only to the service it exports, not to %s", d.Host)
		return false
	case p.dropped[d.Subset]:
		p.quarantine(m.item.ID(), path, "subset %q is not for other clusters", d.Subset)
		return false
	case home && d.Host != string(p.service.ClusterSetHost()):
		p.quarantine(m.item.ID(), path, "the rule keeps requests in the cluster that wrote it: it is not for others")
		return false
	}
	return true
}

func (p *producer) matches(m *maker, r *istio.HTTPRoute, route int) bool {
	for i, match := range r.Match {
		all := map[string]*istio.StringMatch{"uri": match.GetUri(), "method": match.GetMethod(), "authority": match.GetAuthority()}
		for name, s := range match.GetHeaders() {
			all["headers."+name] = s
		}
		for name, s := range match.GetWithoutHeaders() {
			all["withoutHeaders."+name] = s
		}
		for name, s := range all {
			path := m.path("spec", "http", route, "match", i) + "." + name
			if n := len(name) + len(s.GetExact()) + len(s.GetPrefix()) + len(s.GetRegex()); n > maxProducerMatch {
				p.quarantine(m.item.ID(), path, "a match of %d bytes, a producer's has %d at most", n, maxProducerMatch)
				return false
			}
			if size := patternSize(s.GetRegex()); size > maxProducerProgram {
				p.quarantine(m.item.ID(), path, "a regular expression of %d instructions, a producer's has %d at most", size, maxProducerProgram)
				return false
			}
		}
	}
	return true
}

func (p *producer) destinationRule(m *maker, dr *istio.DestinationRule) bool {
	if !p.mine(dr.Host) {
		p.quarantine(m.item.ID(), "spec.host", "the rule is not for %s, the service it came with", p.service)
		return false
	}
	p.policy(m, dr.TrafficPolicy, "spec", "trafficPolicy")
	for i, s := range dr.Subsets {
		if where := topology(s.GetLabels()); len(where) > 0 {
			p.quarantine(m.item.ID(), m.path("spec", "subsets", i, "labels"), "subset %q selects by %s: a producer does not choose among clusters and zones", s.GetName(), where[0])
			p.dropped[s.GetName()] = true
		}
		p.policy(m, s.GetTrafficPolicy(), "spec", "subsets", i, "trafficPolicy")
	}
	dr.Subsets = slices.DeleteFunc(dr.Subsets, func(s *istio.Subset) bool { return p.dropped[s.GetName()] })
	return true
}

// policy bounds a policy. Where to fail over to is the consumer's decision alone.
func (p *producer) policy(m *maker, policy *istio.TrafficPolicy, at ...any) {
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	if policy == nil {
		return
	}
	if lb := policy.LoadBalancer; lb.GetLocalityLbSetting() != nil {
		lb.LocalityLbSetting = nil
		p.r.file = p.file()
		place{r: p.r, object: m.item.ID().String()}.level(mesh.LevelInfo, mesh.CodeProducer, "", m.path(steps("loadBalancer", "localityLbSetting")...),
			"where callers of other clusters go is not the producer's to say: the field is left out here")("a rule of this cluster can say it")
	}
	if c := policy.GetConnectionPool().GetTcp(); c != nil {
		p.duration(m, c.ConnectTimeout, minProducerConnect, maxProducerConnect, steps("connectionPool", "tcp", "connectTimeout")...)
		p.limit(m, &c.MaxConnections, steps("connectionPool", "tcp", "maxConnections")...)
	}
	if c := policy.GetConnectionPool().GetHttp(); c != nil {
		p.duration(m, c.IdleTimeout, minProducerIdle, maxDuration, steps("connectionPool", "http", "idleTimeout")...)
		p.limit(m, &c.Http1MaxPendingRequests, steps("connectionPool", "http", "http1MaxPendingRequests")...)
		p.limit(m, &c.Http2MaxRequests, steps("connectionPool", "http", "http2MaxRequests")...)
		p.limit(m, &c.MaxRequestsPerConnection, steps("connectionPool", "http", "maxRequestsPerConnection")...)
		p.limit(m, &c.MaxRetries, steps("connectionPool", "http", "maxRetries")...)
	}
	if o := policy.OutlierDetection; o != nil {
		p.duration(m, o.Interval, minProducerInterval, maxProducerInterval, steps("outlierDetection", "interval")...)
		p.duration(m, o.BaseEjectionTime, minProducerInterval, maxProducerEjection, steps("outlierDetection", "baseEjectionTime")...)
	}
}

// duration bounds a time that is set.
func (p *producer) duration(m *maker, d *durationpb.Duration, least, most time.Duration, at ...any) {
	if d == nil || d.AsDuration() <= 0 {
		return // none, or found when it is lowered
	}
	was := d.AsDuration()
	if is := min(max(was, least), most); is != was {
		bounded := durationpb.New(is)
		d.Seconds, d.Nanos = bounded.Seconds, bounded.Nanos
		p.clamped(m, m.path(at...), was, is)
	}
}

// limit bounds a count that is set.
func (p *producer) limit(m *maker, n *int32, at ...any) {
	if was := *n; was > 0 && was < minProducerLimit {
		*n = minProducerLimit
		p.clamped(m, m.path(at...), was, minProducerLimit)
	}
}

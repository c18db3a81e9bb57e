package agent

import (
	"maps"
	"slices"
	"strings"
	"time"

	"isthmus.dev/isthmus/xds"
)

// awayLimit is how long responses wait for an Envoy that is not connected. After that they are acknowledged for it, so
// that the next configuration can come: the one that is here may be what kills Envoy. Nobody is told that Envoy has it
// (see verdict.behind).
const awayLimit = 10 * time.Second

// envoyTypes are those that Envoy takes; the name table is the name server's.
var envoyTypes = slices.DeleteFunc(slices.Clone(xds.Types[:]), func(t string) bool { return t == xds.NameTableType })

// verdict decides what the agent may acknowledge to the control plane: what its Envoy has acknowledged, however long
// that takes. It is pure: reports of Envoy, responses of the control plane and ticks go in; it reads no clock.
//
//   - What is for the name server is acknowledged when it is received: nothing there can refuse it.
//   - A response waits until Envoy has accepted or refused everything of its type in a publication that has it. An Envoy
//     that warms or stands still keeps it waiting, and with it what refers to it; Envoy could not take that either.
//   - What Envoy did not ask for (endpoints and routes that nothing uses yet) waits for nobody. Clusters and listeners it
//     always asks for, the latter when its first clusters have warmed.
//   - Without a publication (the first configuration is not complete) and after awayLimit without Envoy there is nobody
//     to wait for. What is acknowledged then is not known to be good: the type stays in doubt.
//
// Doubt is what acknowledgements cannot express: after a start of Envoy or a new stream to the control plane, that one
// believes that the proxy has what the agent had. It is told of the types in doubt beside the stream.
type verdict struct {
	envoy   *envoyReport      // the latest; nil: Envoy is not connected
	ready   bool              // there is a publication
	applied map[string]uint64 // publication that has the newest response of a type
	told    map[string]string // refused resources of a type that the control plane knows of
	doubt   map[string]bool   // types of which Envoy may have less than was acknowledged
	// away is how long Envoy has not been connected since it last had everything. It outlives connections that end before
	// that: an Envoy that dies of its configuration connects again and again.
	away time.Duration
}

func newVerdict() *verdict {
	v := &verdict{applied: map[string]uint64{}, told: map[string]string{}}
	v.doubtAll()
	return v
}

func (v *verdict) doubtAll() {
	v.doubt = map[string]bool{}
	for _, t := range envoyTypes {
		v.doubt[t] = true
	}
}

// received notes that the newest response of a type is part of a publication.
func (v *verdict) received(typeURL string, sequence uint64) {
	v.ready = true
	v.applied[typeURL] = sequence
}

// report takes a report about Envoy's stream; false for one of an older stream, which does not count.
func (v *verdict) report(r envoyReport) bool {
	if v.envoy != nil && v.envoy.stream > r.stream {
		return false
	}
	if r.gone {
		v.envoy = nil
		v.doubtAll()
		return true
	}
	if v.envoy == nil || v.envoy.stream != r.stream {
		v.doubtAll()
	}
	v.envoy = &r
	return true
}

// connected notes a new stream to the control plane: it takes what the agent has for acknowledged, whether Envoy has it
// or not.
func (v *verdict) connected() {
	clear(v.told)
	for _, t := range envoyTypes {
		if !v.taken(t) {
			v.doubt[t] = true
		}
	}
}

// tick notes that time has passed.
func (v *verdict) tick(passed time.Duration) {
	if v.envoy == nil {
		v.away = min(v.away+passed, awayLimit)
		return
	}
	before := maps.Clone(v.doubt)
	for t := range before {
		// Until it has its listeners, Envoy may yet ask for what they refer to.
		if v.taken(t) && (asked(v.envoy, t) || !before[xds.ClusterType] && !before[xds.ListenerType]) {
			delete(v.doubt, t)
		}
	}
	if len(v.doubt) == 0 {
		v.away = 0
	}
}

// taken tells whether Envoy has accepted everything of a type that it asked for.
func (v *verdict) taken(typeURL string) bool {
	if !v.ready || v.envoy == nil || v.envoy.sequence < v.applied[typeURL] {
		return false
	}
	s, ok := v.envoy.status(typeURL)
	if !ok {
		return typeURL != xds.ClusterType && typeURL != xds.ListenerType
	}
	return s.Settled && len(s.Refused) == 0
}

func asked(r *envoyReport, typeURL string) bool {
	_, ok := r.status(typeURL)
	return ok
}

// behind are the types in doubt, sorted.
func (v *verdict) behind() []string { return slices.Sorted(maps.Keys(v.doubt)) }

// answer tells whether the newest response of a type, not yet answered, is to be answered now, and which resources of
// the type Envoy refuses.
func (v *verdict) answer(typeURL string) (refused []string, why string, due bool) {
	switch {
	case typeURL == xds.NameTableType || !v.ready:
		return nil, "", true
	case v.envoy == nil:
		return nil, "", v.away >= awayLimit
	case v.envoy.sequence < v.applied[typeURL]:
		return nil, "", false
	}
	s, ok := v.envoy.status(typeURL)
	if !ok {
		return nil, "", typeURL != xds.ClusterType && typeURL != xds.ListenerType
	}
	return s.Refused, s.Nack, s.Settled
}

// afterthought tells what Envoy refuses of a type that was acknowledged while there was no Envoy to judge it, once for
// each set of resources: note takes what the control plane was told.
func (v *verdict) afterthought(typeURL string) (refused []string, why string) {
	if v.envoy == nil {
		return nil, ""
	}
	s, ok := v.envoy.status(typeURL)
	if !ok || !s.Settled {
		return nil, ""
	}
	if len(s.Refused) == 0 {
		delete(v.told, typeURL)
	}
	if strings.Join(s.Refused, " ") == v.told[typeURL] {
		return nil, ""
	}
	return s.Refused, s.Nack
}

// note takes that the control plane was told of refused resources.
func (v *verdict) note(typeURL string, refused []string) {
	v.told[typeURL] = strings.Join(refused, " ")
}

// envoyReport is how far an Envoy is with a publication.
type envoyReport struct {
	stream   int64 // number of the stream, growing
	sequence uint64
	types    []xds.TypeStatus
	gone     bool // the stream has ended
}

// status gives that of one type; ok is false if Envoy has not asked for it.
func (r *envoyReport) status(typeURL string) (s xds.TypeStatus, ok bool) {
	i := slices.IndexFunc(r.types, func(t xds.TypeStatus) bool { return t.TypeURL == typeURL })
	if i < 0 {
		return s, false
	}
	return r.types[i], true
}

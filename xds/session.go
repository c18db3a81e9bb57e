package xds

import (
	"maps"
	"math"
	"slices"
)

// Config of a Session. The zero value is usable.
type Config struct {
	// Authoritative says that a name which is not in the State does not exist: a client that subscribed to it by name
	// is told so. Otherwise the State is a copy that may still be filling: nothing is said about a missing name, and
	// a named resource that leaves the State stays with the client until it unsubscribes. Envoy ignores removals of
	// routes with an error in its log, and takes a removal of endpoints for an answer, which ends a cluster's warming
	// with no endpoint. Wildcard subscriptions are told of removals either way.
	Authoritative bool
	// MaxResources of one response; 0 means 1,000. Envoy's time limit for endpoints (15 s) starts for all clusters
	// of a response at once: at 9,000 they expire before their endpoints are read.
	MaxResources int
	// MaxBytes of one response; 0 means 4 MiB. A single larger resource is sent alone.
	MaxBytes int
	// Linger is how many ticks a cluster and its endpoints stay with a client after it accepted the routes that name
	// them no more: Envoy looks the cluster up again for each retry of a request, and fails the request if it is gone.
	// 0 means 30 where Authoritative, which is the longest time a request without a time-out is reckoned to take;
	// none otherwise, for what leaves a copy has waited at the original. Negative means none.
	Linger int
}

// LongestRequest is how long a request without a time-out is reckoned to take, in ticks: what it may need stays that long after
// nothing refers to it any more. The first tick may come at once, so it is 29 to 30 s.
const LongestRequest = 30

// maxHeldTicks is how long listeners and routes are held back for a new cluster whose endpoints the client has not
// asked for. Envoy asks at once; a client that never does must not wait for ever.
const maxHeldTicks = 5

// youngTicks is how long nothing is removed after a returning client's first word on a type: until it has spoken of all
// its types, nothing tells that routes it has, and will change, still refer to what is to be removed. It is one to two
// seconds.
const youngTicks = 2

// Session is the server's end of one stream. It is not safe for concurrent use. Nothing is answered before the first
// Update.
//
// Invariants: at most one response a type is in flight; a type's resources are sent only while every earlier type (see
// order) has nothing in flight or waiting, but for endpoints, which are sent right after their cluster and of which only
// those the client lacks hold back others; a name is removed only when the client has accepted everything that had
// changed when the name left the State, and in reverse order. What changes later holds no removal back, so that a mesh
// that never rests still forgets.
type Session struct {
	cfg     Config
	state   State
	updates uint64 // calls of Update so far
	subs    map[string]*subscription
	types   []string // those of subs, make-before-break
	nonce   uint64
	routed  bool // the client has, or had, routes
	// awaited are clusters sent whose endpoints exist but are not subscribed yet, with their age in ticks.
	awaited map[string]int
	young   int // ticks until removals may start
}

// subscription is what a client asked for and has, of one type.
type subscription struct {
	typeURL  string
	wildcard bool
	names    map[string]bool
	now      sets                // what the State has of the type
	version  string              // and what that is called
	known    *holdings           // what the client has or was sent
	dirty    map[string]uint64   // to be sent, with the update since which the client lacks it; 0: since ever
	gone     map[string]*leaving // to be removed
	// absent are names that do not exist and that the client waits for; unlike removals this is said at once.
	absent map[string]bool
	// retry are parts of a refused response, each to be sent alone to find the resource at fault; suspect are their names.
	retry   [][]string
	suspect map[string]string
	// refused are the versions found at fault; they are not sent again.
	refused  map[string]string
	nack     string  // what the client said last of a refused response
	owes     bool    // a first wildcard subscription is answered even by nothing
	inFlight *flight // nil: none
	last     *flight // the latest response that was accepted
	acked    string  // State.Version when the client last had everything
}

// leaving is a name on its way out.
type leaving struct {
	since uint64 // the update with which it left
	stale uint64 // the update since which what the client has of it is out of date; at most since
	wait  int    // ticks it still lingers
}

// flight is one response on its way.
type flight struct {
	nonce   string
	sent    []Resource
	since   uint64 // the earliest update of its resources; never: it has none
	fresh   bool   // it has a resource of which the client had no version that counts
	alone   bool   // a part of a refused response: it has to be judged by itself
	removed map[string]*leaving
	left    uint64 // the earliest update of its removals; never: it has none
}

// never is later than every update.
const never = math.MaxUint64

// NewSession starts the server's end of a stream.
func NewSession(cfg Config) *Session {
	if cfg.MaxResources <= 0 {
		cfg.MaxResources = 1000
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 4 << 20
	}
	if cfg.Linger == 0 && cfg.Authoritative {
		cfg.Linger = LongestRequest
	}
	return &Session{cfg: cfg, subs: map[string]*subscription{}, awaited: map[string]int{}}
}

// Update gives the session the State to bring the client to and returns what to send now.
func (s *Session) Update(state State) []Response {
	old, first := s.state, s.updates == 0
	s.state = state
	s.updates++
	for _, t := range s.types {
		sub := s.subs[t]
		had := sub.now
		moved := sub.follow(state)
		if first {
			s.markAll(sub)
			continue
		}
		if !moved {
			continue
		}
		changed, removed := diff(had, sub.now)
		for _, names := range [][]string{changed, removed} {
			for _, name := range names {
				if sub.wants(name) {
					s.mark(sub, name, s.updates)
				}
			}
		}
	}
	if endpoints := s.subs[EndpointType]; endpoints != nil && !first {
		_, removed := Diff(old, state, ClusterType)
		for _, name := range removed {
			if _, had := old.Get(EndpointType, name); !had && endpoints.names[name] {
				s.mark(endpoints, name, s.updates)
			}
		}
	}
	for name := range s.awaited {
		if !s.has(ClusterType, name) || !s.has(EndpointType, name) {
			delete(s.awaited, name)
		}
	}
	return s.next()
}

// Request takes one request of the client and returns what to send now.
func (s *Session) Request(req Request) []Response {
	sub, found := s.subs[req.TypeURL]
	if !found {
		sub = newSubscription(req)
		s.subs[req.TypeURL] = sub
		s.types = slices.SortedFunc(maps.Keys(s.subs), compareTypes)
		if len(req.InitialVersions) > 0 {
			s.young = youngTicks
			s.routed = s.routed || req.TypeURL == RouteType
		}
	} else {
		s.answer(sub, req)
	}
	if !found && s.updates > 0 {
		sub.follow(s.state)
	}
	s.subscribe(sub, req, !found)
	if !found && s.updates > 0 {
		s.markAll(sub)
	}
	return s.next()
}

// Tick tells the session that a second has passed; see Waiting. Whoever calls it must not let other events put it off.
func (s *Session) Tick() []Response {
	for name, age := range s.awaited {
		if s.awaited[name] = age + 1; age+1 >= maxHeldTicks {
			delete(s.awaited, name)
		}
	}
	if s.young > 0 {
		s.young--
		return s.next()
	}
	unnamed := s.accepted() // clusters that left earlier than this are named by nothing the client has
	for t, sub := range s.subs {
		if compareTypes(t, EndpointType) > 0 {
			unnamed = min(unnamed, sub.left())
		}
	}
	for _, sub := range s.subs {
		for _, l := range sub.gone {
			switch {
			case !s.routed:
				l.wait = 0
			case l.wait > 0 && l.since < unnamed:
				l.wait--
			}
		}
	}
	return s.next()
}

// Waiting tells whether Tick has anything to do.
func (s *Session) Waiting() bool {
	if len(s.awaited) > 0 || s.young > 0 {
		return true
	}
	for _, sub := range s.subs {
		if sub.lingers() {
			return true
		}
	}
	return false
}

func newSubscription(req Request) *subscription {
	sub := &subscription{
		typeURL: req.TypeURL,
		names:   map[string]bool{},
		known:   newHoldings(req.InitialVersions),
		dirty:   map[string]uint64{},
		gone:    map[string]*leaving{},
		absent:  map[string]bool{},
		suspect: map[string]string{},
		refused: map[string]string{},
	}
	if len(req.Subscribe) == 0 && legacyWildcard(req.TypeURL) {
		sub.wildcard = true
	}
	return sub
}

// follow takes what a State has of the type; false if it is what the State before had.
func (sub *subscription) follow(state State) bool {
	if sub.now.are(state, sub.typeURL) {
		return false
	}
	sub.now = state.of(sub.typeURL)
	sub.version = sub.now.version()
	return true
}

func (s *Session) has(typeURL, name string) bool {
	_, ok := s.state.Get(typeURL, name)
	return ok
}

func (sub *subscription) wants(name string) bool { return sub.wildcard || sub.names[name] }

// subscribe applies the subscriptions of req. A name that is subscribed once more is sent once more: the client has
// forgotten it. Under a wildcard, a name that is unsubscribed is sent once more too: the client cannot know whether the
// wildcard covers it.
func (s *Session) subscribe(sub *subscription, req Request, first bool) {
	for _, name := range req.Subscribe {
		if name == Wildcard {
			again := sub.wildcard
			sub.wildcard = true
			if sub.typeURL == EndpointType {
				for known := range sub.known.all() {
					s.arrived(sub, known)
				}
				clear(s.awaited)
			}
			if !first && !again {
				s.markAll(sub)
			}
			continue
		}
		sub.names[name] = true
		if sub.typeURL == EndpointType {
			s.arrived(sub, name)
		}
		if !first {
			sub.stale(name)
			s.mark(sub, name, 0)
		}
	}
	for _, name := range req.Unsubscribe {
		if name == Wildcard {
			sub.wildcard = false
		} else {
			delete(sub.names, name)
		}
	}
	for _, name := range req.Unsubscribe {
		switch {
		case name == Wildcard:
			sub.known.stop()
			for known := range sub.known.all() {
				if !sub.wants(known) {
					sub.forget(known)
				}
			}
			maps.DeleteFunc(sub.dirty, func(name string, _ uint64) bool { return !sub.wants(name) })
			maps.DeleteFunc(sub.gone, func(name string, _ *leaving) bool { return !sub.wants(name) })
			maps.DeleteFunc(sub.absent, func(name string, _ bool) bool { return !sub.wants(name) })
		case sub.wildcard:
			sub.known.set(name, "")
			s.mark(sub, name, 0)
		default:
			sub.forget(name)
		}
	}
	if first && sub.wildcard && len(req.InitialVersions) == 0 {
		sub.owes = true
	}
}

// arrived notes that the client subscribed to the endpoints of a cluster. If the cluster was sent before, they have to
// follow even if the client has them from an earlier stream.
func (s *Session) arrived(endpoints *subscription, name string) {
	if _, ok := s.awaited[name]; ok || s.warms(name) {
		endpoints.stale(name)
		delete(s.awaited, name)
	}
}

// forget drops everything about a name the client no longer wants.
func (sub *subscription) forget(name string) {
	sub.known.drop(name)
	delete(sub.dirty, name)
	delete(sub.gone, name)
	delete(sub.absent, name)
	delete(sub.suspect, name)
	delete(sub.refused, name)
}

// stale notes that the client may hold any version of a name it was sent.
func (sub *subscription) stale(name string) {
	if _, ok := sub.known.get(name); ok {
		sub.known.set(name, "")
	}
}

// markAll decides anew about everything the client wants or has. A client that has just come and wants everything is given
// it piece by piece, and what one has that has come again is compared with what there is.
func (s *Session) markAll(sub *subscription) {
	all := maps.Clone(sub.names)
	if sub.wildcard && len(sub.known.base) == 0 {
		if sub.known.empty() {
			sub.known.load(sub.now)
		} else {
			sub.known.refer(sub.now)
		}
		for name := range sub.known.over {
			all[name] = true
		}
		for name := range all {
			s.mark(sub, name, 0)
		}
		return
	}
	sub.known.stop()
	for name := range sub.known.all() {
		if sub.wants(name) {
			all[name] = true
		} else {
			sub.known.drop(name)
		}
	}
	if sub.wildcard {
		for r := range sub.now.each {
			all[r.Name] = true
		}
	}
	for name := range all {
		s.mark(sub, name, 0)
	}
}

// mark decides whether a name the client wants has to be sent, removed, or nothing. The name changed with update since,
// or nobody knows when (0).
func (s *Session) mark(sub *subscription, name string, since uint64) {
	if s.updates == 0 {
		return // markAll follows with the first State
	}
	r, exists := sub.now.get(name)
	if sub.suspect[name] != r.Version {
		delete(sub.suspect, name)
	}
	if sub.refused[name] != r.Version {
		delete(sub.refused, name)
	}
	if exists {
		if l := sub.gone[name]; l != nil {
			since = min(since, l.stale)
		}
		delete(sub.gone, name)
		delete(sub.absent, name)
		version, has := sub.known.get(name)
		if (has && version == r.Version) || sub.suspect[name] != "" || sub.refused[name] != "" {
			delete(sub.dirty, name)
		} else if _, already := sub.dirty[name]; !already {
			sub.dirty[name] = since
		}
		return
	}
	stale := s.updates
	if dirty, ok := sub.dirty[name]; ok {
		stale = dirty
	}
	delete(sub.dirty, name)
	version, has := sub.known.get(name)
	switch {
	case sub.names[name] && s.nonexistent(sub.typeURL, name) && (!has || sub.typeURL == EndpointType && (version == "" || s.warms(name))):
		sub.known.drop(name)
		delete(sub.gone, name)
		sub.absent[name] = true
	case !has:
	case sub.wildcard || s.cfg.Authoritative:
		if sub.gone[name] == nil {
			sub.gone[name] = &leaving{since: s.updates, stale: stale, wait: s.linger(sub.typeURL)}
		}
	default:
		sub.known.drop(name)
	}
	if len(sub.refused)+len(sub.retry) == 0 && !sub.leaves() && sub.inFlight == nil {
		sub.nack = "" // what was refused is no more, and no acknowledgement will follow
	}
}

// linger is how long a name of this type stays after it has left the State: no time where no route can have named it,
// as at a gateway. A client that has just returned may have routes of which it has not spoken yet.
func (s *Session) linger(typeURL string) int {
	if (typeURL == ClusterType || typeURL == EndpointType) && (s.routed || s.young > 0) {
		return max(0, s.cfg.Linger)
	}
	return 0
}

// nonexistent tells whether a name that is not in the State may be called so: a copy that is filling knows it of the
// endpoints of a cluster that is not there either, which would otherwise warm until Envoy gives up.
func (s *Session) nonexistent(typeURL, name string) bool {
	return s.cfg.Authoritative || typeURL == EndpointType && s.subs[ClusterType] != nil && !s.has(ClusterType, name)
}

// warms tells whether the client may be warming a cluster: it was sent and is not acknowledged.
func (s *Session) warms(cluster string) bool {
	clusters := s.subs[ClusterType]
	if clusters == nil || clusters.inFlight == nil {
		return false
	}
	return slices.ContainsFunc(clusters.inFlight.sent, func(r Resource) bool { return r.Name == cluster })
}

// answer takes the client's verdict on a response, if req carries one.
func (s *Session) answer(sub *subscription, req Request) {
	if req.Nonce == "" {
		return
	}
	f := sub.inFlight
	switch {
	case f != nil && f.nonce == req.Nonce:
		sub.inFlight, sub.last = nil, f
	case f == nil && sub.last != nil && sub.last.nonce == req.Nonce && req.Nack != "":
		f = sub.last // the client changed its mind: an agent whose Envoy came later
	default:
		return // stale
	}
	if req.Nack == "" {
		if len(sub.refused)+len(sub.retry) == 0 {
			sub.nack = ""
		}
		return
	}
	sub.last = nil
	sub.nack = req.Nack
	s.refuse(sub, f)
}

// refuse halves a refused response until the resources at fault are alone: one bad resource must not keep a thousand
// good ones from the client.
func (s *Session) refuse(sub *subscription, f *flight) {
	var current []string
	versions := make(map[string]string, len(f.sent))
	for _, sent := range f.sent {
		name := sent.Name
		versions[name] = sent.Version
		if r, ok := sub.now.get(name); sub.wants(name) && ok && r.Version == sent.Version {
			current = append(current, name)
		}
		sub.stale(name)
		if sub.typeURL == ClusterType {
			delete(s.awaited, name)
		}
	}
	if len(f.sent) > 0 { // else the client refuses to forget: it keeps what it has
		for name, l := range f.removed {
			if _, again := sub.known.get(name); again || !sub.wants(name) {
				continue
			}
			sub.known.set(name, "")
			if s.mark(sub, name, f.left); sub.gone[name] != nil {
				sub.gone[name] = l
			}
		}
	}
	if len(f.sent) == 1 && len(f.removed) == 0 {
		for _, name := range current {
			sub.refused[name] = versions[name]
			delete(sub.dirty, name)
		}
		return
	}
	slices.Sort(current)
	half := (len(current) + 1) / 2
	for _, part := range [][]string{current[:half], current[half:]} {
		if len(part) == 0 {
			continue
		}
		sub.retry = append(sub.retry, part)
		for _, name := range part {
			sub.suspect[name] = versions[name]
			delete(sub.dirty, name)
		}
	}
}

// Names counts what the client subscribed to by name, of all types; whoever serves the stream bounds it.
func (s *Session) Names() int {
	n := 0
	for _, sub := range s.subs {
		n += len(sub.names)
	}
	return n
}

package proxies

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
)

// street is a namespace: instances a, b and c of service web (port http 80 → 8000), a and b of admin too (port 9000),
// and a service wrong, which leads to port 9999 of all.
func street() *world.Snapshot {
	var updates []mesh.Update
	for name, service := range map[mesh.ServiceName]mesh.Service{
		{Namespace: "me", Name: "web"}:      {Selector: map[string]string{"web": "yes"}, Ports: []mesh.Port{{Name: "http", Number: 80, TargetPort: 8000}}},
		{Namespace: "me", Name: "admin"}:    {Selector: map[string]string{"admin": "yes"}, Ports: []mesh.Port{{Number: 90, TargetPort: 9000}}},
		{Namespace: "me", Name: "wrong"}:    {Selector: map[string]string{"web": "yes"}, Ports: []mesh.Port{{Number: 99, TargetPort: 9999}}},
		{Namespace: "other", Name: "a"}:     {Selector: map[string]string{"web": "yes"}, Ports: []mesh.Port{{Number: 80, TargetPort: 8000}}},
		{Namespace: "me", Name: "headless"}: {},
	} {
		service.Name = name
		updates = append(updates, mesh.SetObject{Name: mesh.ObjectName{Kind: config.KindService, Namespace: name.Namespace, Name: name.Name}, Value: &service})
	}
	for name, labels := range map[string]map[string]string{"a": {"web": "yes", "admin": "yes"}, "b": {"web": "yes", "admin": "yes"}, "c": {"web": "yes"}} {
		n := mesh.WorkloadName{Namespace: "me", Name: name}
		updates = append(updates, mesh.SetWorkload{Workload: &mesh.Workload{Name: n, Labels: labels, Ready: true}})
	}
	return world.Folded{}.Apply(updates...).Snapshot()
}

// never is when certificates end.
func never(mesh.WorkloadName) time.Time { return time.Unix(1<<40, 0) }

// says gives a report written "8000 up 9999 down"; "away" is a proxy that does not serve.
func says(text string) facts {
	if text == "away" {
		return facts{}
	}
	f := facts{ready: true}
	words := strings.Fields(text)
	for i := 0; i+1 < len(words); i += 2 {
		var n uint32
		fmt.Sscan(words[i], &n)
		f.ports = append(f.ports, Port{Number: n, State: map[string]PortState{"up": Up, "down": Down, "busy": Busy}[words[i+1]]})
	}
	return f
}

func TestPorts(t *testing.T) {
	tests := []struct {
		why     string
		reports []string // "a: 8000 up 9999 down"
		want    []string // all that is told, in order
	}{
		{"a wrong port in somebody's service takes the workload out of that service only",
			[]string{"a: 8000 up 9000 up 9999 down"}, []string{"a ready [9999]"}},
		{"nothing listens on any port", []string{"a: 8000 down 9000 down"}, []string{"a not ready"}},
		{"refused is down though it is the last one",
			[]string{"a: away", "b: away", "c: 8000 down"}, []string{"a not ready", "b not ready", "c not ready"}},
		{"busy is down where another one is up", []string{"b: 8000 up", "a: 8000 busy 9000 up"}, []string{"b ready []", "a ready [8000]"}},
		{"busy and nothing else, where another one is up", []string{"b: 8000 up", "c: 8000 busy"}, []string{"b ready []", "c not ready"}},
		{"the last one is never taken away for being busy",
			[]string{"a: away", "b: 8000 down", "c: 8000 busy"}, []string{"a not ready", "b not ready", "c ready []"}},
		{"the last one goes on when the other one dies",
			[]string{"a: away", "b: 8000 up", "c: 8000 busy", "b: 8000 down"},
			[]string{"a not ready", "b ready []", "c not ready", "b not ready", "c ready []"}},
		{"all busy: all go on", []string{"a: 8000 up 9000 up", "b: 8000 busy 9000 up", "c: 8000 busy", "a: 8000 busy 9000 up"},
			[]string{"a ready []", "b ready [8000]", "c not ready", "b ready []", "c ready []"}},
		{"each port for itself", []string{"a: 8000 up 9000 busy", "b: 8000 busy 9000 down"}, []string{"a ready [9000]", "a ready []", "b not ready"}},
		{"others that have not spoken are what they were", []string{"a: 8000 busy 9000 busy"}, []string{"a not ready"}},
		{"an agent that does not tell ports apart is up on all", []string{"b:", "a: 8000 busy 9000 up"}, []string{"b ready []", "a ready [8000]"}},
		{"a port that no service leads to", []string{"a: 8000 up 7000 busy"}, []string{"a ready [7000]"}},
		{"the same again is no news", []string{"a: 8000 up 9999 down", "a: 8000 up 9999 down"}, []string{"a ready [9999]"}},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			m, s, now := newMachine(time.Second, time.Minute, never), street(), time.Unix(0, 0)
			var got []string
			note := func(updates []mesh.Update) {
				for _, u := range updates {
					h := u.(mesh.SetHealth)
					text := fmt.Sprintf("%s not ready", h.Name.Name)
					if h.Ready {
						text = fmt.Sprintf("%s ready %v", h.Name.Name, h.Down)
					}
					got = append(got, text)
				}
			}
			note(m.published(now, s))
			for i, r := range test.reports {
				who, text, _ := strings.Cut(r, ":")
				name := mesh.WorkloadName{Namespace: "me", Name: who}
				m.opened(name, uint64(i+1))
				note(m.reported(name, uint64(i+1), says(strings.TrimSpace(text))))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestOrderOfReports: what is believed at last depends on the last reports only, and a service of which one instance
// listens is never left without an endpoint.
func TestOrderOfReports(t *testing.T) {
	states := []string{"up", "down", "busy"}
	rapid.Check(t, func(t *rapid.T) {
		s, now := street(), time.Unix(0, 0)
		m := newMachine(time.Second, time.Minute, never)
		told := map[string]mesh.SetHealth{}
		last := map[string]string{}
		note := func(updates []mesh.Update) {
			for _, u := range updates {
				told[u.(mesh.SetHealth).Name.Name] = u.(mesh.SetHealth)
			}
		}
		note(m.published(now, s))
		say := func(m *machine, who, text string) []mesh.Update {
			name := mesh.WorkloadName{Namespace: "me", Name: who}
			m.opened(name, 1)
			return m.reported(name, 1, says(text))
		}
		for range rapid.IntRange(0, 12).Draw(t, "reports") {
			who := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "who")
			last[who] = "8000 " + rapid.SampledFrom(states).Draw(t, "web")
			if who != "c" {
				last[who] += " 9000 " + rapid.SampledFrom(states).Draw(t, "admin")
			}
			note(say(m, who, last[who]))
		}
		fresh := newMachine(time.Second, time.Minute, never)
		fresh.published(now, s)
		want := map[string]mesh.SetHealth{}
		for _, who := range []string{"a", "b", "c"} {
			if last[who] == "" {
				continue
			}
			for _, u := range say(fresh, who, last[who]) {
				want[u.(mesh.SetHealth).Name.Name] = u.(mesh.SetHealth)
			}
		}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Fatalf("after %v, the last reports alone against all of them (-alone +all):\n%s", last, diff)
		}
		for port, who := range map[uint32][]string{8000: {"a", "b", "c"}, 9000: {"a", "b"}} {
			listening, serving := false, false
			for _, w := range who {
				h, ok := told[w]
				listening = listening || !ok || !strings.Contains(last[w], fmt.Sprint(port, " down"))
				serving = serving || !ok || (&mesh.Workload{Ready: h.Ready, Down: h.Down}).Serves(port)
			}
			if listening && !serving {
				t.Fatalf("port %d has no endpoint: said %v, told %v", port, last, told)
			}
		}
	})
}

func TestPortsOf(t *testing.T) {
	got := portsOf(&workload.HealthReport{Ports: []*workload.PortHealth{
		{Port: 9, State: workload.PortHealth_STATE_BUSY}, {Port: 8, State: workload.PortHealth_STATE_DOWN, LoopbackOnly: true}, {Port: 8}, {Port: 10, State: 99},
	}})
	want := []Port{{Number: 8, State: Down, LoopbackOnly: true}, {Number: 9, State: Busy}, {Number: 10, State: Up}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestFacts: an agent's word counts while its newest stream lives.
func TestFacts(t *testing.T) {
	tracker := New(Config{})
	l := &tracker.facts
	check := func(why, want string) {
		t.Helper()
		got := "nothing"
		if f, ok := tracker.Facts(ratings); ok {
			got = strings.Join(f.Behind, " ")
		}
		if all := tracker.All(); len(all) != map[bool]int{true: 0, false: 1}[got == "nothing"] {
			t.Errorf("%s: all are %v", why, all)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", why, got, want)
		}
	}
	check("never seen", "nothing")
	l.open(ratings, 1)
	check("it has not spoken", "nothing")
	l.set(ratings, 1, Facts{Behind: []string{"routes"}})
	check("it has spoken", "routes")
	l.open(ratings, 2)
	check("a new stream: what was said may be old", "nothing")
	l.set(ratings, 1, Facts{Behind: []string{"old"}})
	l.end(ratings, 1)
	check("the old stream says and means nothing", "nothing")
	l.set(ratings, 2, Facts{})
	check("nothing is behind", "")
	l.end(ratings, 2)
	check("gone", "nothing")
}

// TestWaitingIsCheap: of workloads from before a start that may have no proxy any more, nothing is kept apart while they are
// waited for.
func TestWaitingIsCheap(t *testing.T) {
	m, now := newMachine(time.Second, time.Minute, func(mesh.WorkloadName) time.Time { return time.Time{} }), time.Unix(0, 0)
	m.published(now, street())
	if len(m.entries)+len(m.waiting) > 0 {
		t.Errorf("%d entries and %d deadlines of workloads that nobody has heard of", len(m.entries), len(m.waiting))
	}
	due, ok := m.next()
	if got := m.passed(due); !ok || len(got) != 3 {
		t.Errorf("%d are taken down at last, want the 3 there are", len(got))
	}
	if _, ok := m.next(); ok {
		t.Error("there is something to wait for when all are down")
	}
}

// TestBusyWithoutTheName: an instance that has no port of the name a service leads to does not stand in for one that has.
func TestBusyWithoutTheName(t *testing.T) {
	web := mesh.ServiceName{Namespace: "me", Name: "web"}
	for why, ports := range map[string]map[string]uint32{"another that has it stands in": {"http-port": 8001}, "another without it does not": nil} {
		updates := []mesh.Update{mesh.SetObject{Name: mesh.ObjectName{Kind: config.KindService, Namespace: "me", Name: "web"}, Value: &mesh.Service{
			Name: web, Selector: map[string]string{"web": "yes"}, Ports: []mesh.Port{{Name: "http", Number: 80, TargetName: "http-port"}}}}}
		for name, own := range map[string]map[string]uint32{"a": {"http-port": 8000}, "b": ports} {
			updates = append(updates, mesh.SetWorkload{Workload: &mesh.Workload{
				Name: mesh.WorkloadName{Namespace: "me", Name: name}, Labels: map[string]string{"web": "yes"}, Ports: own, Ready: true}})
		}
		m, a := newMachine(time.Second, time.Minute, never), mesh.WorkloadName{Namespace: "me", Name: "a"}
		m.published(time.Unix(0, 0), world.Folded{}.Apply(updates...).Snapshot())
		m.opened(a, 1)
		m.reported(a, 1, says("8000 busy"))
		if got := m.verdict(a).Ready; got != (ports == nil) {
			t.Errorf("%s: the busy one is ready: %v", why, got)
		}
	}
}

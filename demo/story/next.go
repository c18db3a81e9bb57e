package story

import (
	"strings"

	"isthmus.dev/isthmus/demo/topology"
)

// next are commands to go on with. Each works as it stands, from any folder, while the demo runs.
func (s *story) next() []string {
	isthmus := quoted(s.commands.program) + s.here
	lines := []string{"", s.screen.bold("Try this next, in another terminal")}
	add := func(what, command string) {
		lines = append(lines, "  # "+what, "  "+isthmus+" "+command)
	}
	from := s.live.Topology.Authority().Name
	if s.hasShop() {
		service := s.live.Topology.Exported()[len(s.live.Topology.Exported())-1]
		if s.hasCanary() {
			service = topology.Service{Name: reviews.Name}
		}
		call := "demo call --from " + from + " --to " + service.Host() + " --count 100"
		add("who answers?", call)
		if s.hasCanary() {
			add("now without the cluster that answers", "demo fault kill "+north)
			lines = append(lines, "  "+isthmus+" "+call, "  "+isthmus+" demo fault restore "+north)
		}
		add("a program of your own, as a workload of "+from, "--cluster "+from+
			" workload run --name mine -n shop -- curl -s http://ratings.shop.svc.clusterset.local:8080/")
	}
	add("what "+from+" knows, and of whom", "--cluster "+from+" service list")
	lines = append(lines, "  "+isthmus+" --cluster "+from+" cluster list")
	add("is every proxy up to date?", "--cluster "+from+" proxy status")
	return append(lines, "", "Ctrl-C here takes everything down.", "")
}

// quoted is a word for a shell.
func quoted(word string) string {
	if word != "" && !strings.ContainsFunc(word, special) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

func special(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/._-+:@%,=", r)
}

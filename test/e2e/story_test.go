package e2e

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// telling is `demo up` in the foreground, without a terminal.
type telling struct {
	cmd   *exec.Cmd
	dir   string
	ended chan struct{}

	mu     sync.Mutex
	stdout strings.Builder // guarded by mu
	stderr bytes.Buffer    // until ended
}

func tell(t *testing.T, args ...string) *telling {
	t.Helper()
	s := &telling{dir: filepath.Join(t.TempDir(), "a demo"), ended: make(chan struct{})}
	s.cmd = exec.Command(bin("isthmus"), append([]string{"demo", "up", "--dir", s.dir}, args...)...)
	s.cmd.Stderr = &s.stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		s.read(out)
		_ = s.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Signal(os.Interrupt)
		<-s.ended
		if t.Failed() {
			t.Logf("the story:\n%s\n%s", s.text(), tail(s.stderr.String(), 30))
		}
		run(t, "", "demo", "down", "--dir", s.dir)
	})
	return s
}

func (s *telling) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		s.mu.Lock()
		s.stdout.WriteString(lines.Text() + "\n")
		s.mu.Unlock()
	}
}

func (s *telling) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stdout.String()
}

// await waits until the story has come to a line.
func (s *telling) await(t *testing.T, wait time.Duration, line string) {
	t.Helper()
	eventually(t, wait, func() string {
		select {
		case <-s.ended:
			if !strings.Contains(s.text(), line) {
				t.Fatalf("the story ended without %q", line)
			}
		default:
		}
		if !strings.Contains(s.text(), line) {
			return "no " + strconv.Quote(line)
		}
		return ""
	})
}

// tableRow is a line of the table: the service, its requests and its errors since the beginning.
var tableRow = regexp.MustCompile(`(?m)^(\w+) +([\d,]+) +\d+ +([\d,]+) +[\d,]+ `)

// counts are the last ones of a service in the tables so far.
func (s *telling) counts(t *testing.T, service string) (requests, errors int) {
	t.Helper()
	number := func(text string) int {
		n, err := strconv.Atoi(strings.ReplaceAll(text, ",", ""))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	requests = -1
	for _, m := range tableRow.FindAllStringSubmatch(s.text(), -1) {
		if m[1] == service {
			requests, errors = number(m[2]), number(m[3])
		}
	}
	if requests < 0 {
		t.Fatalf("no table tells of %s", service)
	}
	return requests, errors
}

// TestStory is what `make demo` tells a newcomer, to the end.
func TestStory(t *testing.T) {
	s := tell(t)
	s.await(t, 4*time.Minute, "2. Every exported service")
	// payroll is called by nobody in the story, so each request that its row shows is the stranger's.
	const strangers = 137
	for _, wait := range []string{"3. A canary", "4. West is killed", "Try this next"} {
		s.await(t, 3*time.Minute, wait)
		if wait != "3. A canary" {
			continue
		}
		r := run(t, "", "demo", "call", "--dir", s.dir, "--from", "west", "--to", "payroll.shop.svc.cluster.local",
			"--count", strconv.Itoa(strangers), "-o", "json")
		if r.code != 0 {
			t.Fatalf("demo call: exit %d\n%s", r.code, r.stderr)
		}
	}
	text := s.text()
	for reason, want := range map[string]string{
		"the authority":                        `(?m)^  east +founded demo\.isthmus\.internal`,
		"a join with its milliseconds":         `(?m)^  west +joined with its token in \d+ ms`,
		"and its phases":                       `(?m)^ +\w+ \d+, .*admit \d+.* ms$`,
		"calls to all services from a cluster": `(?m)^  north +← \S+/ratings-\d, \S+/reviews-\S+, \S+/inventory-\d, west/ledger-\d$`,
		"the caller as the servers saw it":     `spiffe://east\.demo\.isthmus\.internal/ns/shop/sa/caller`,
		"what is not exported":                 `payroll is not exported`,
		"the canary at 90/10":                  `west answered (8[0-9]|9[0-9])\.\d%, north \d+\.\d% of \d+ requests`,
		"the canary at 50/50":                  `west answered (4[0-9]|5[0-9])\.\d%, north [45]\d\.\d% of \d+ requests`,
		"west's death":                         `west is dead`,
		"seen from outside":                    `(?m)^  - west: \d+ sidecars no longer heard of$`,
		"its return":                           `west is back: restarted in \d`,
		"what was not lost":                    `(?m)^    inventory +\d+ requests, \d+ failed$`,
		"what had to be":                       `(?m)^    ledger +\d+ requests, [1-9]\d* failed, as it runs in west only$`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("%s: the story has no line like %s", reason, want)
		}
	}
	if strings.ContainsAny(text, "\x1b\r") {
		t.Error("escapes, though nobody looks at a terminal")
	}
	if requests, errors := s.counts(t, "payroll"); requests != strangers || errors != 0 {
		t.Errorf("the table counts %d requests to payroll, %d failed; a stranger sent %d", requests, errors, strangers)
	}
	if strings.Contains(text, "\n  ! ") {
		t.Error("an act failed")
	}
	pasted(t, text)
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-s.ended
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("after Ctrl-C: exit %d, want 0", code)
	}
	if r := run(t, "", "demo", "status", "--dir", s.dir); r.code == 0 {
		t.Errorf("after Ctrl-C the demo still runs:\n%s", r.stdout)
	}
}

// pasted runs every command that the story ends with, from another folder, as a reader would.
func pasted(t *testing.T, text string) {
	_, list, _ := strings.Cut(text, "Try this next")
	ran := 0
	for line := range strings.Lines(list) {
		command, found := strings.CutPrefix(strings.TrimRight(line, "\n"), "  ")
		if !found || strings.HasPrefix(command, "#") || strings.HasPrefix(command, "- ") || strings.HasPrefix(command, "+ ") {
			continue
		}
		cmd := exec.Command("sh", "-c", command)
		cmd.Dir = t.TempDir()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
		ran++
	}
	if ran < 6 {
		t.Errorf("%d commands to paste, want some:\n%s", ran, list)
	}
}

package agent

import (
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestRaises(t *testing.T) {
	const infinity = ^uint64(0)
	tests := []struct {
		soft, hard, wanted uint64
		want               []syscall.Rlimit
		why                string
	}{
		{1024, 4096, 40_000, []syscall.Rlimit{{Cur: 40_000, Max: 40_000}, {Cur: 4096, Max: 4096}}, "the hard limit if allowed, else up to it"},
		{1024, 1 << 20, 40_000, []syscall.Rlimit{{Cur: 1 << 20, Max: 1 << 20}}, "the hard limit is enough and is not lowered"},
		{1024, infinity, 40_000, []syscall.Rlimit{{Cur: infinity, Max: infinity}}, "no hard limit"},
		{4096, 4096, 4096, []syscall.Rlimit{{Cur: 4096, Max: 4096}}, "already there: set again, so that children get it"},
	}
	for _, test := range tests {
		if got := raises(syscall.Rlimit{Cur: test.soft, Max: test.hard}, test.wanted); !slices.Equal(got, test.want) {
			t.Errorf("soft %d, hard %d, wanted %d: got %v, want %v: %s", test.soft, test.hard, test.wanted, got, test.want, test.why)
		}
	}
}

// TestRaisePassesToChildren: what is said to be there is what a child gets.
func TestRaisePassesToChildren(t *testing.T) {
	got, err := raiseDescriptors(1) // the hard limit, whatever it is: no right of this machine matters
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", "ulimit -n").Output()
	if err != nil {
		t.Fatal(err)
	}
	if has := strings.TrimSpace(string(out)); has != strconv.FormatUint(got, 10) && has != "unlimited" {
		t.Errorf("a child may have %s descriptors open, want %d", has, got)
	}
}

package checks

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/hack/kube/cgroup"
)

// rounds of up and down that must all succeed.
const rounds = 20

// BenchmarkRounds starts three clusters and takes them away twenty times; it reports the slowest of each and the
// memory of the last.
func BenchmarkRounds(b *testing.B) {
	var slowestUp, slowestDown, memory float64
	for range b.N {
		for round := range rounds {
			start := time.Now()
			if _, err := up("bench", "--clusters", "3", "--overlap"); err != nil {
				b.Fatalf("round %d: %v", round+1, err)
			}
			slowestUp = max(slowestUp, time.Since(start).Seconds())
			if round == rounds-1 {
				var err error
				if memory, err = proportionalMiB("bench"); err != nil {
					b.Error(err)
				}
			}
			start = time.Now()
			if err := down("bench"); err != nil {
				b.Fatalf("round %d: %v", round+1, err)
			}
			slowestDown = max(slowestDown, time.Since(start).Seconds())
		}
	}
	b.ReportMetric(slowestUp, "s-up-max")
	b.ReportMetric(slowestDown, "s-down-max")
	b.ReportMetric(memory, "MiB-PSS")
}

// proportionalMiB sums the proportional set sizes of a lab's processes.
func proportionalMiB(name string) (float64, error) {
	tree, err := cgroup.Open("isthmus-kube-" + name)
	if err != nil {
		return 0, err
	}
	pids, err := tree.Processes()
	if err != nil {
		return 0, err
	}
	total := 0
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // ended meanwhile
		}
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Pss:" {
				kib, err := strconv.Atoi(fields[1])
				if err != nil {
					return 0, err
				}
				total += kib
			}
		}
	}
	return float64(total) / 1024, nil
}

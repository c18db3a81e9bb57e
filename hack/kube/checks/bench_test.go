package checks

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/hack/kube/cgroup"
)

// rounds of up and down that must all succeed.
const rounds = 20

// BenchmarkRounds starts three clusters and takes them away twenty times; it reports the median and the slowest of each
// and the memory of the last.
func BenchmarkRounds(b *testing.B) {
	var ups, downs []float64
	var memory float64
	for range b.N {
		for round := range rounds {
			start := time.Now()
			if _, err := up("bench", "--clusters", "3", "--overlap"); err != nil {
				b.Fatalf("round %d: %v", round+1, err)
			}
			ups = append(ups, time.Since(start).Seconds())
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
			downs = append(downs, time.Since(start).Seconds())
		}
	}
	for unit, list := range map[string][]float64{"s-up": ups, "s-down": downs} {
		slices.Sort(list)
		b.ReportMetric(list[len(list)/2], unit+"-median")
		b.ReportMetric(list[len(list)-1], unit+"-max")
	}
	b.ReportMetric(memory, "MiB-PSS")
}

// BenchmarkBuild builds everything with an empty build cache, and once more. Modules that were downloaded before are
// not downloaded again.
func BenchmarkBuild(b *testing.B) {
	var cold, again float64
	for range b.N {
		b.Setenv("GOCACHE", b.TempDir())
		b.Setenv("ISTHMUS_CACHE", b.TempDir())
		for _, took := range []*float64{&cold, &again} {
			start := time.Now()
			if _, err := kubelab("build", "--source", ".."); err != nil {
				b.Fatal(err)
			}
			*took = time.Since(start).Seconds()
		}
	}
	b.ReportMetric(cold, "s-cold")
	b.ReportMetric(again, "s-second")
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

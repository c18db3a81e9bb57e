package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// memory asks the kernel how much each process of an idle demo holds: RSS counts every page it has, PSS divides shared
// pages among those that share them, so that PSS adds up. The baseline is an Envoy without configuration.
func memory(b *testing.B, d *demo) {
	before, kinds, total := load(), map[string]figures{}, 0.0
	started := children(b)
	note := func(kind string, pid int) {
		if kinds[kind] == nil {
			kinds[kind] = figures{}
		}
		rss, pss := held(b, pid)
		kinds[kind].add("RSS MiB", rss)
		kinds[kind].add("PSS MiB", pss)
		if kind != "empty envoy" {
			total += pss
		}
	}
	for _, c := range d.doc.Clusters {
		for _, co := range c.Components {
			name := co.Kind
			if name == "sidecar" || name == "gateway" {
				name += " agent"
			}
			note(name, co.PID)
			for _, envoy := range started[co.PID] {
				note(co.Kind+" envoy", envoy)
			}
		}
	}
	cmd := exec.Command(envoyPath(b), "--config-yaml", "{}", "--concurrency", "1", "--disable-hot-restart", "--log-level", "off")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	last := 0.0
	eventually(b, func() string { // until it has started: what it holds grows no more
		time.Sleep(500 * time.Millisecond)
		rss, _ := held(b, cmd.Process.Pid)
		grown := rss - last
		last = rss
		if grown == 0 {
			return ""
		}
		return fmt.Sprintf("an empty Envoy grew by %.1f MiB", grown)
	})
	note("empty envoy", cmd.Process.Pid)
	for _, kind := range []string{"controlplane", "gateway agent", "gateway envoy", "sidecar agent", "sidecar envoy", "app", "empty envoy"} {
		b.Run(kind, func(b *testing.B) {
			b.ReportMetric(float64(len(kinds[kind]["RSS MiB"])), "processes")
			kinds[kind].report(b, before)
		})
	}
	b.Run("sum", func(b *testing.B) { figures{"PSS MiB": {total}}.report(b, before) })
}

func envoyPath(b *testing.B) string {
	b.Helper()
	if path := os.Getenv("ISTHMUS_ENVOY"); path != "" {
		return path
	}
	path, err := filepath.Abs("../../.tools/envoy")
	if err != nil {
		b.Fatal(err)
	}
	return path
}

// held is the memory of a process in MiB (proc_pid_smaps(5)).
func held(b *testing.B, pid int) (rss, pss float64) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		f := strings.Fields(l)
		if len(f) != 3 {
			continue
		}
		kB, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "Rss:":
			rss = kB / 1024
		case "Pss:":
			pss = kB / 1024
		}
	}
	return rss, pss
}

// children are the processes that each process has started and that still run.
func children(b *testing.B) map[int][]int {
	b.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	started := map[int][]int{}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		child, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // the name before it may have blanks
		parent, _ := strconv.Atoi(f[1])
		started[parent] = append(started[parent], child)
	}
	return started
}

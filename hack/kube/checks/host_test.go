package checks

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What `make kube-up` and `make kube-down` do, twice and beside the shared lab: nothing of a lab is left on the machine,
// and its name can be used again at once.
func TestThreeClustersTwice(t *testing.T) {
	const name = "checks-three"
	for round := range 2 {
		before, err := inventory()
		if err != nil {
			t.Fatal(err)
		}
		s, err := up(name, "--clusters", "3", "--overlap")
		if err != nil {
			t.Fatalf("round %d: %v", round+1, err)
		}
		owned, err := namespaces(name)
		last := latest()
		servers := map[string]bool{}
		for _, c := range s.Clusters {
			servers[c.Server] = true
			if c.State != "up" || c.Pods != s.Clusters[0].Pods || len(c.Nodes) != 1 {
				t.Errorf("round %d: cluster %+v, want it up with one node and the pod network of the others", round+1, c)
			}
			if out, err := kubelab("kubectl", "--name", name, c.Name, "--", "get", "nodes", "-o", "name"); err != nil || out != "node/"+c.Nodes[0].Name+"\n" {
				t.Errorf("round %d: nodes of %s are %q, %v", round+1, c.Name, out, err)
			}
		}
		if len(servers) != 3 {
			t.Errorf("round %d: API servers %v, want three", round+1, servers)
		}
		if err := errors.Join(err, down(name)); err != nil {
			t.Fatalf("round %d: %v", round+1, err)
		}
		if err := compare(name, before, owned, last); err != nil {
			t.Fatalf("round %d: %v", round+1, err)
		}
	}
}

// An `up` that is interrupted takes everything back; one that is killed leaves a lab that `down` finds.
func TestUpInterrupted(t *testing.T) {
	const name = "checks-cut"
	for signal, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGKILL: -1} {
		before, err := inventory()
		if err != nil {
			t.Fatal(err)
		}
		command := exec.Command(os.Getenv("KUBELAB"), "up", "--name", name, "--clusters", "1", "--source", "..")
		progress, err := command.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(progress)
		for lines.Scan() && !strings.Contains(lines.Text(), "API server is ready") {
		}
		last := latest()
		if err := command.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
		}
		command.Wait() // the exit code is what counts
		if got := command.ProcessState.ExitCode(); got != code {
			t.Errorf("up ended by %v: exit code %d, want %d", signal, got, code)
		}
		out, err := kubelab("status", "--name", name, "-o", "json")
		if down := strings.Contains(out, `"clusters":[]`); err != nil || down != (signal == syscall.SIGINT) {
			t.Errorf("status after an up that was ended by %v: %s, %v", signal, out, err)
		}
		if err := errors.Join(down(name), compare(name, before, nil, last)); err != nil {
			t.Errorf("after an up that was ended by %v: %v", signal, err)
		}
	}
}

// A disk that is too small is found before anything is made on it.
func TestSmallDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=100m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("ISTHMUS_KUBE_DIR", dir)
	_, err := up("checks-small", "--clusters", "2")
	if err == nil || !strings.Contains(err.Error(), "only 100 MiB are free for "+dir+"/checks-small, the lab takes 512") || !strings.Contains(err.Error(), "ISTHMUS_KUBE_DIR") {
		t.Errorf("up on a small disk: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("up on a small disk left %v, %v", left, err)
	}
}

// Whatever a lab cannot do is said at once, with what to do about it.
func TestRefuses(t *testing.T) {
	program, err := os.ReadFile(os.Getenv("KUBELAB"))
	if err != nil {
		t.Fatal(err)
	}
	// A copy, in a folder that an ordinary user may enter.
	dir := t.TempDir()
	kubelab := filepath.Join(dir, "kubelab")
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755), os.WriteFile(kubelab, program, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		why  string
		path string // "" for that of the test
		uid  uint32
		args []string
		code int
		want []string
	}{
		{"an ordinary user", "", 65534, []string{"up"}, 1, []string{"needs root", "sudo"}},
		{"nothing installed", dir, 0, []string{"up"}, 1, []string{"not installed: runc ", "apt-get install runc iproute2 nftables conntrack socat util-linux"}},
		{"no program to run", "", 0, []string{"up", "--prebuilt", dir}, 1, []string{"is no folder of ready programs"}},
		{"no sources", "", 0, []string{"up", "--source", dir}, 1, []string{"the sources of the lab are not in " + dir}},
		{"no cluster", "", 0, []string{"up", "--clusters", "0"}, 64, []string{"clusters 0: want 1 to 15"}},
		{"too many nodes", "", 0, []string{"up", "--nodes", "4"}, 64, []string{"nodes 4: want 1 to 3"}},
		{"a name that is none", "", 0, []string{"up", "--name", "../x"}, 64, []string{"lab name \"../x\""}},
		{"an unknown flag", "", 0, []string{"up", "--cluster", "3"}, 64, []string{"unknown flag: --cluster"}},
		{"an unknown fault", "", 0, []string{"fault", "node-stop", "c1"}, 64, []string{"unknown fault \"node-stop\"", "node-kill"}},
		{"a lab that is not up", "", 0, []string{"kubectl", "c1", "--", "get", "nodes"}, 69, []string{"lab checks-none: not up", "kubelab up --name checks-none"}},
		{"a cluster that is not there", "", 0, []string{"kubeconfig", "--name", labName, "c9"}, 1, []string{"cluster \"c9\": not in this lab"}},
		{"a node that is not there", "", 0, []string{"fault", "--name", labName, "node-kill", "c1/n9"}, 1, []string{"node \"n9\" of cluster \"c1\": not in this lab"}},
		{"kubectl's own exit code and words", "", 0, []string{"kubectl", "--name", labName, "c1", "--", "get", "pods", "nobody", "-n", "kube-system"}, 1, []string{`pods "nobody" not found`}},
		{"an image that is none", "", 0, []string{"load-image", "--name", labName, "c1", kubelab}, 1, []string{"load " + kubelab + " into node c1-n1"}},
	} {
		t.Run(test.why, func(t *testing.T) {
			args := test.args
			if !strings.Contains(strings.Join(args, " "), "--name") {
				args = append([]string{"--name", "checks-none"}, args...)
			}
			command := exec.Command(kubelab, args...)
			if test.path != "" {
				command.Env = append(os.Environ(), "PATH="+test.path)
			}
			if test.uid != 0 {
				command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: test.uid, Gid: test.uid}}
			}
			var problems bytes.Buffer
			command.Stderr = &problems
			err := command.Run()
			if command.ProcessState == nil {
				t.Fatal(err)
			}
			if code := command.ProcessState.ExitCode(); code != test.code {
				t.Errorf("kubelab %s: exit code %d, want %d", strings.Join(args, " "), code, test.code)
			}
			for _, want := range test.want {
				if !strings.Contains(problems.String(), want) {
					t.Errorf("kubelab %s says\n%swant %q in it", strings.Join(args, " "), &problems, want)
				}
			}
		})
	}
}

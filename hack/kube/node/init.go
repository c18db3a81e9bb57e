// Package node is what runs inside a node's namespaces: PID 1 of a machine that has its own disk, processes, mounts,
// host name and network, and starts containerd, the kubelet and kube-proxy on it. Killing it is pulling the plug: the
// kernel ends every container with it.
package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/hack/kube/cgroup"
	"isthmus.dev/isthmus/hack/kube/process"
)

// Init is the node's PID 1; path names the file with its Config. It returns only when it fails or ctx ends.
func Init(ctx context.Context, path string, log *slog.Logger) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var c Config
	if err := json.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	tree, err := cgroup.Open(strings.Trim(c.Cgroup, "/"))
	if err != nil {
		return err
	}
	if err := tree.JoinSelf(c.Name + "/programs"); err != nil {
		return err
	}
	if err := isolate(c); err != nil {
		return fmt.Errorf("node %s: %w", c.Name, err)
	}
	n := &node{config: c, log: log, reaper: process.NewReaper()}
	go n.reaper.Run(ctx)
	if err := n.up(ctx); err != nil {
		return fmt.Errorf("node %s: %w", c.Name, err)
	}
	<-ctx.Done()
	return ctx.Err()
}

type node struct {
	config Config
	log    *slog.Logger
	reaper *process.Reaper
}

// isolate gives the node its own view of the file system. The host's files stay readable; every folder that the
// node's programs write to is covered by one of its own.
func isolate(c Config) error {
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Opened before anything is covered: either folder may be below one that will be.
	disk, err := unix.Open(c.State, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", c.State, err)
	}
	bin, err := unix.Open(c.Bin, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", c.Bin, err)
	}
	for _, dir := range []string{"/run", "/tmp", "/var/lib", "/var/log"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
			return fmt.Errorf("cover %s: %w", dir, err)
		}
	}
	for dir, fd := range map[string]int{diskDir: disk, binDir: bin} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
		unix.Close(fd)
	}
	// The kubelet sets these if they differ; it finds what it wants, and the machine's own stay as they are.
	for name, value := range map[string]string{"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"} {
		file := filepath.Join("/run", filepath.Base(name))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, "/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover /proc/sys/%s: %w", name, err)
		}
	}
	// Volumes that the kubelet mounts must show up in containers.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}

func (n *node) up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.config.Patience)
	defer cancel()
	for name, text := range n.config.files() {
		path := filepath.Join(diskDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := n.run(ctx, "nft", "nft", "-f", diskDir+"/etc/link.nft"); err != nil {
		return err
	}
	if err := n.daemon("containerd", binDir+"/containerd", "--config", diskDir+"/etc/containerd.toml", "--log-level", "warn"); err != nil {
		return err
	}
	if err := n.images(ctx); err != nil {
		return err
	}
	if err := waitAPI(ctx, n.config.API, diskDir+"/pki/ca.crt"); err != nil {
		return err
	}
	if err := n.daemon("kubelet", binDir+"/kube", "kubelet",
		"--config", diskDir+"/etc/kubelet.yaml", "--kubeconfig", diskDir+"/pki/kubelet.kubeconfig",
		"--root-dir", diskDir+"/kubelet", "--hostname-override", n.config.Name, "--node-ip", n.config.Address.String()); err != nil {
		return err
	}
	return n.daemon("kube-proxy", binDir+"/kube", "kube-proxy", "--config", diskDir+"/etc/proxy.yaml")
}

// images puts the archives into the node's store, once in the life of its disk.
func (n *node) images(ctx context.Context) error {
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			break
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("containerd does not answer: %w: %s", err, process.Tail(diskDir+"/log/containerd.log", 5))
		}
	}
	marker := filepath.Join(diskDir, "images-loaded")
	if _, err := os.Stat(marker); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, image := range n.config.Images {
		if err := n.run(ctx, "load-image", binDir+"/ctr", "--address", socket, "-n", "k8s.io", "images", "import",
			"--snapshotter", n.config.Snapshotter, filepath.Join(binDir, "images", image)); err != nil {
			return fmt.Errorf("load image %s: %w", image, err)
		}
	}
	return os.WriteFile(marker, nil, 0o644)
}

func (n *node) run(ctx context.Context, name, program string, args ...string) error {
	path, err := lookPath(program)
	if err != nil {
		return err
	}
	return n.reaper.Do(ctx, process.Spec{Name: name, Path: path, Args: args, Log: filepath.Join(diskDir, "log", name+".log")})
}

func (n *node) daemon(name, program string, args ...string) error {
	env := []string{"PATH=" + binDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	d := process.NewDaemon(n.reaper, n.log, process.Spec{Name: name, Path: program, Args: args, Env: env,
		Log: filepath.Join(diskDir, "log", name+".log")})
	return d.Start()
}

// waitAPI returns when the API server says it is ready. Programs that start earlier back off for seconds.
func waitAPI(ctx context.Context, api, ca string) error {
	text, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return fmt.Errorf("%s holds no certificate", ca)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+api+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(response.Status)
		}
		if pause(ctx) != nil {
			return fmt.Errorf("API server %s is not ready: %w", api, err)
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(100 * time.Millisecond):
		return nil
	}
}

// lookPath is exec.LookPath over the fixed search path of a node's programs.
func lookPath(program string) (string, error) {
	if filepath.IsAbs(program) {
		return program, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		path := filepath.Join(dir, program)
		if unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", program)
}

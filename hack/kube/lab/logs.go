package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"isthmus.dev/isthmus/hack/kube/keeper"
	"isthmus.dev/isthmus/hack/kube/process"
)

// Programs is the folder with the programs that the lab was started with.
func (l *Lab) Programs() (string, error) {
	text, err := os.ReadFile(l.path(keeper.ConfigFile))
	if err != nil {
		return "", err
	}
	var c keeper.Config
	if err := json.Unmarshal(text, &c); err != nil {
		return "", fmt.Errorf("read %s: %w", keeper.ConfigFile, err)
	}
	return c.Bin, nil
}

// PrintLogs writes the ends of the log files of everything, of CLUSTER (control plane and nodes) or of CLUSTER/NODE.
func (l *Lab) PrintLogs(w io.Writer, target string, lines int) error {
	dir := l.Dir
	cluster, node, withNode := strings.Cut(target, "/")
	if cluster != "" {
		dir = filepath.Join(dir, cluster)
	}
	if withNode {
		if !strings.HasPrefix(node, cluster+"-") {
			node = cluster + "-" + node
		}
		dir = filepath.Join(dir, "nodes", node)
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch d.Name() {
			case "containerd", "kubelet", "etcd", "pods": // data; pods have kubectl logs
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".log" {
			return nil
		}
		_, err = fmt.Fprintf(w, "==> %s <==\n%s\n", path, process.Tail(path, lines))
		return err
	})
}

package host

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/hint"
)

// LogFile is the log of one component.
type LogFile struct {
	// Name is CLUSTER/COMPONENT; supervisor for the demo's own.
	Name string
	Path string
}

// supervisorLog is the name under which the demo's own log is shown.
const supervisorLog = "supervisor"

// Logs lists the logs of a cluster, of one component of it, or for an empty
// target of everything. They stay after the demo's end, until the next one.
func (h Home) Logs(target string) ([]LogFile, error) {
	r, err := h.read()
	if err != nil {
		return nil, err
	}
	var found []LogFile
	var names []string
	add := func(f LogFile) {
		names = append(names, f.Name)
		if target == "" || f.Name == target || strings.HasPrefix(f.Name, target+"/") {
			found = append(found, f)
		}
	}
	if _, err := os.Stat(h.Log()); err == nil {
		add(LogFile{Name: supervisorLog, Path: h.Log()})
	}
	for _, cluster := range r.Clusters {
		root := filepath.Join(h.Dir, cluster, "log")
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if name, ok := strings.CutSuffix(strings.TrimPrefix(path, root+"/"), ".log"); ok {
				add(LogFile{Name: topology.Target{Cluster: cluster, Component: name}.String(), Path: path})
			}
			return nil
		})
		if err != nil && !os.IsNotExist(err) {
			return nil, fmt.Errorf("list the logs of %s: %w", cluster, err)
		}
	}
	if len(found) == 0 {
		err := hint.Code(fmt.Errorf("no logs of %q in %s", target, h.Dir), "not_found")
		if len(names) == 0 {
			return nil, hint.Wrap(err, "start a demo with: isthmus demo up")
		}
		return nil, hint.Wrap(err, "there are: "+strings.Join(names, ", "))
	}
	return found, nil
}

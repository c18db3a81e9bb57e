package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/hack/kube/keeper"
)

// prompt is how long the keeper may take to answer a question that it answers from memory.
const prompt = 10 * time.Second

// Status asks the keeper; a lab that is down has no clusters.
func (l *Lab) Status(ctx context.Context) (keeper.Status, error) {
	s := keeper.Status{Name: l.Name, Dir: l.Dir, Clusters: []keeper.ClusterStatus{}}
	err := l.call(ctx, http.MethodGet, "/status", nil, &s)
	if errors.Is(err, ErrDown) {
		err = nil
	}
	return s, err
}

// Fault does a fault; see keeper.Faults.
func (l *Lab) Fault(ctx context.Context, action, target string) error {
	return l.call(ctx, http.MethodPost, "/fault", url.Values{"action": {action}, "target": {target}}, nil)
}

// LoadImage puts the image archive file into every node of a cluster.
func (l *Lab) LoadImage(ctx context.Context, cluster, file string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	if _, err := os.Stat(file); err != nil {
		return err
	}
	return l.call(ctx, http.MethodPost, "/load-image", url.Values{"cluster": {cluster}, "file": {file}}, nil)
}

// ExecArgs returns the command line that runs args in a node (CLUSTER or CLUSTER/NODE) or on the link.
func (l *Lab) ExecArgs(ctx context.Context, where string, args []string) ([]string, error) {
	var target keeper.Target
	if err := l.call(ctx, http.MethodGet, "/target?"+url.Values{"target": {where}}.Encode(), nil, &target); err != nil {
		return nil, err
	}
	id, err := l.keeper()
	if err != nil {
		return nil, err
	}
	// In the lab's process namespace, so that it ends with the lab.
	enter := []string{"nsenter", "--target", strconv.Itoa(id.PID), "--pid", "--mount"}
	if target.PID == 0 {
		enter = append(enter, fmt.Sprintf("--net=/proc/%d/fd/%d", id.PID, target.NetFD), "--")
	} else {
		enter = append(enter, "--", "nsenter", "--target", strconv.Itoa(target.PID), "--pid", "--mount", "--uts", "--ipc", "--net", "--")
	}
	return append(enter, args...), nil
}

// call asks the keeper and decodes its answer into reply. Questions have to be answered promptly, deeds may take long.
func (l *Lab) call(ctx context.Context, method, path string, form url.Values, reply any) error {
	id, err := l.keeper()
	if err != nil {
		return err
	}
	if method == http.MethodGet {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, prompt)
		defer cancel()
	}
	transport := &http.Transport{DialContext: l.dial, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, method, "http://keeper"+path, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := (&http.Client{Transport: transport}).Do(request)
	if errors.Is(err, context.DeadlineExceeded) {
		return &Problem{fmt.Errorf("the keeper of lab %s (process %d) does not answer", l.Name, id.PID),
			"if it is stopped: kill -CONT " + strconv.Itoa(id.PID) + "; kubelab down --name " + l.Name + " takes the lab away all the same"}
	}
	if err != nil {
		return fmt.Errorf("ask the keeper of lab %s: %w", l.Name, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("ask the keeper of lab %s: %w", l.Name, err)
	}
	if response.StatusCode != http.StatusOK {
		var problem struct{ Error string }
		if json.Unmarshal(text, &problem) != nil || problem.Error == "" {
			problem.Error = response.Status
		}
		return errors.New(problem.Error)
	}
	if reply == nil {
		return nil
	}
	return json.Unmarshal(text, reply)
}

// dial reaches the keeper's socket by its open folder; see keeper.Keeper.
func (l *Lab) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	dir, err := unix.Open(l.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir, keeper.SocketFile))
}

// Package host is the demo as seen from outside its tree: the folder it lives
// in, the start and the end of its first process, and what a demo that was
// killed leaves behind. What runs is known by a lock, a process number and its
// start time, never by a name.
package host

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/process"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

// DirEnv names the demo's folder where --dir does not.
const DirEnv = "ISTHMUS_DEMO_DIR"

const (
	lockName   = "lock"
	recordName = "demo.json"
	// LogName is the supervisor's own log, below the demo's folder.
	LogName = "log/supervisor.log"
	// maxBase is the longest base folder for sockets: the longest socket below is
	// 60 bytes more, and the kernel takes 107.
	maxBase = 46
)

// CodeNotRunning is the code of errors that say that no demo runs.
const CodeNotRunning = control.CodeNotRunning

// Home is the folder of one demo.
type Home struct {
	// Dir is absolute and has no symbolic links, so that equal folders have equal names.
	Dir string
}

// Locate finds a demo's folder: the given one, else that of DirEnv, else one
// below the user's state folder. It need not exist.
func Locate(dir string) (Home, error) {
	if dir == "" {
		dir = os.Getenv(DirEnv)
	}
	if dir == "" {
		state, err := stateFolder()
		if err != nil {
			return Home{}, err
		}
		dir = filepath.Join(state, "isthmus", "demo")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Home{}, fmt.Errorf("find the demo's folder %s: %w", dir, err)
	}
	resolved, err := resolve(abs)
	if err != nil {
		return Home{}, fmt.Errorf("find the demo's folder %s: %w", dir, err)
	}
	return Home{Dir: resolved}, nil
}

// stateFolder is where programs keep what survives a restart (XDG base directories).
func stateFolder() (string, error) {
	if s := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(s) {
		return s, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", hint.Wrap(fmt.Errorf("find the demo's folder: %w", err), "name one with --dir or "+DirEnv)
	}
	return filepath.Join(home, ".local", "state"), nil
}

// resolve follows the links of the part of a path that exists.
func resolve(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) || path == "/" {
		return real, err
	}
	parent, err := resolve(filepath.Dir(path))
	return filepath.Join(parent, filepath.Base(path)), err
}

// hash names the demo's socket folder: short, and different for each folder.
func (h Home) hash() string {
	sum := sha256.Sum256([]byte(h.Dir))
	return hex.EncodeToString(sum[:5])
}

// Log is the path of the supervisor's log.
func (h Home) Log() string { return filepath.Join(h.Dir, LogName) }

// record is what a running demo leaves for later commands.
type record struct {
	// PID is the first process as the host has it, 0 once the demo was taken down.
	PID int `json:"pid"`
	// StartTime is in clock ticks since boot; BootID makes it one of this boot.
	StartTime uint64 `json:"startTime"`
	BootID    string `json:"bootID"`
	// RunDir is the folder of sockets.
	RunDir string `json:"runDir"`
	// Clusters are the folders below Dir that belong to the demo.
	Clusters []string `json:"clusters"`
}

func (h Home) read() (record, error) {
	var r record
	b, err := os.ReadFile(filepath.Join(h.Dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return r, h.unread(err)
	}
	return r, nil
}

// unread explains why the record cannot be read: mostly because the demo is another user's.
func (h Home) unread(err error) error {
	err = fmt.Errorf("read the demo's record: %w", err)
	if errors.Is(err, fs.ErrPermission) {
		return hint.Wrapf(hint.Code(err, exit.CodeNotAllowed), "the demo in %s is another user's: run the command as that user, or name another with --dir", h.Dir)
	}
	return hint.Wrapf(err, "if %s is damaged, remove it once nothing of that demo runs", filepath.Join(h.Dir, recordName))
}

func (h Home) write(r record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the demo's record: %w", err)
	}
	path := filepath.Join(h.Dir, recordName)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the demo's record: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write the demo's record: %w", err)
	}
	return nil
}

// alive tells whether the recorded process still runs.
func (r record) alive() bool {
	same, ended := r.process()
	return same && !ended
}

// process tells whether the recorded process still has its number, and whether it
// has ended and only waits to be collected.
func (r record) process() (same, ended bool) {
	if r.PID == 0 || r.BootID != bootID() {
		return false, false
	}
	start, err := process.StartTime(r.PID)
	ended = errors.Is(err, os.ErrProcessDone)
	return (err == nil || ended) && start == r.StartTime, ended
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// Client speaks with the running demo.
func (h Home) Client() (control.Client, error) {
	r, err := h.running()
	if err != nil {
		return control.Client{}, err
	}
	return control.Client{Socket: filepath.Join(r.RunDir, "control.sock")}, nil
}

// running is the record of a demo that runs.
func (h Home) running() (record, error) {
	r, err := h.read()
	if err == nil && !r.alive() {
		err = fmt.Errorf("no demo runs in %s", h.Dir)
		err = hint.Wrap(hint.Code(err, CodeNotRunning), "start it with: isthmus demo up")
	}
	return r, err
}

// AdminSocket is the path of a cluster's admin socket, for as long as the demo runs.
func (h Home) AdminSocket(cluster string) (string, error) {
	r, err := h.running()
	if err != nil {
		return "", err
	}
	if !slices.Contains(r.Clusters, cluster) {
		err := fmt.Errorf("the demo in %s has no cluster %q", h.Dir, cluster)
		return "", hint.Wrap(hint.Code(err, "not_found"), "its clusters: "+strings.Join(r.Clusters, ", "))
	}
	return filepath.Join(r.RunDir, cluster, "admin.sock"), nil
}

// lock takes the demo's lock, which its first process then keeps until its end.
func (h Home) lock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(h.Dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the demo's folder: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = hint.Wrap(hint.Code(fmt.Errorf("a demo is already running in %s", h.Dir), "already_running"),
			"see it with: isthmus demo status; end it with: isthmus demo down; or start another with --dir")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// clean removes what an ended demo left: always its sockets, and with data its
// clusters' folders. It needs the lock, or a demo that has just ended.
func (h Home) clean(r record, data bool) error {
	var errs []error
	// A record is only a file: remove nothing that this demo cannot have made.
	if r.RunDir != "" && filepath.Base(r.RunDir) == h.hash() {
		errs = append(errs, os.RemoveAll(r.RunDir))
		// The folder it was in goes with the last demo of this user.
		_ = os.Remove(filepath.Dir(r.RunDir))
	}
	if data {
		for _, c := range r.Clusters {
			if c != "" && filepath.Base(c) == c && c != "." && c != ".." {
				errs = append(errs, os.RemoveAll(filepath.Join(h.Dir, c)))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove what the last demo left: %w", err)
	}
	return nil
}

// runFolder makes the folder of sockets: below the user's runtime folder, else
// below one of the user's own under the temporary folder. Socket paths are
// short however long Dir is.
func (h Home) runFolder() (string, error) {
	own := fmt.Sprintf("isthmus-%d", os.Getuid())
	candidates := []string{filepath.Join(os.TempDir(), own), filepath.Join("/tmp", own), filepath.Join("/var/tmp", own)}
	if x := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(x) {
		candidates = append([]string{filepath.Join(x, "isthmus")}, candidates...)
	}
	var errs []error
	// Twice: the end of another demo may remove a base that is empty in between.
	for _, base := range append(candidates, candidates...) {
		run := filepath.Join(base, h.hash())
		err := guarded(base)
		if err == nil {
			err = os.Mkdir(run, 0o700)
		}
		if err == nil {
			return run, nil
		}
		errs = append(errs, err)
	}
	return "", hint.Wrap(fmt.Errorf("make a folder for sockets: %w", errors.Join(errs...)),
		"set TMPDIR to a short path of your own")
}

// guarded makes sure that a folder exists, is this user's and closed to others:
// under a temporary folder anyone may have made it first.
func guarded(base string) error {
	if len(base) > maxBase {
		return fmt.Errorf("%s: longer than %d bytes, socket paths would not fit", base, maxBase)
	}
	if err := os.Mkdir(base, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := os.Lstat(base)
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.IsDir() || int(owner.Uid) != os.Getuid() || st.Mode().Perm()&0o077 != 0 {
		return hint.Code(fmt.Errorf("%s: not a folder of yours alone", base), exit.CodeNotAllowed)
	}
	return nil
}

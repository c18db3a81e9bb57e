package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"isthmus.dev/isthmus/demo/process"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

func TestUnread(t *testing.T) {
	for _, tc := range []struct {
		why  string
		err  error
		code string
	}{
		{"another user's", &fs.PathError{Op: "open", Path: "/x/demo.json", Err: syscall.EACCES}, exit.CodeNotAllowed},
		{"damaged", errors.New("unexpected end of JSON input"), ""},
	} {
		if err := (Home{Dir: "/x"}).unread(tc.err); hint.CodeOf(err) != tc.code || hint.Of(err) == "" {
			t.Errorf("%s: %v, code %q, hint %q; want code %q and a hint", tc.why, err, hint.CodeOf(err), hint.Of(err), tc.code)
		}
	}
}

func TestLocate(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(root)
	for _, tc := range []struct {
		why, flag, env, state, want string
	}{
		{"the flag is first", "real/a", root + "/env", root, root + "/real/a"},
		{"then the environment", "", root + "/env", root, root + "/env"},
		{"then the state folder", "", "", root, root + "/isthmus/demo"},
		{"then below the home", "", "", "", root + "/.local/state/isthmus/demo"},
		{"a relative state folder counts as none", "", "", "x", root + "/.local/state/isthmus/demo"},
		{"equal folders have equal names, made or not", "link/a/b", "", root, root + "/real/a/b"},
	} {
		t.Setenv(DirEnv, tc.env)
		t.Setenv("XDG_STATE_HOME", tc.state)
		t.Setenv("HOME", root)
		if h, err := Locate(tc.flag); err != nil || h.Dir != tc.want {
			t.Errorf("%s: Locate(%q) = %q, %v; want %q", tc.why, tc.flag, h.Dir, err, tc.want)
		}
	}
	t.Setenv("HOME", "")
	t.Setenv("XDG_STATE_HOME", "")
	if _, err := Locate(""); err == nil || hint.Of(err) == "" {
		t.Errorf("without any folder: %v, hint %q", err, hint.Of(err))
	}
}

// A record names a process only if that started when the record says.
func TestAlive(t *testing.T) {
	pid := os.Getpid()
	start, err := process.StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		why  string
		r    record
		want bool
	}{
		{"this process", record{PID: pid, StartTime: start, BootID: bootID()}, true},
		{"another that got the number later", record{PID: pid, StartTime: start - 1, BootID: bootID()}, false},
		{"one of another boot", record{PID: pid, StartTime: start, BootID: "x"}, false},
		{"none", record{BootID: bootID()}, false},
	} {
		if got := tc.r.alive(); got != tc.want {
			t.Errorf("%s: alive %t, want %t", tc.why, got, tc.want)
		}
	}
}

// A record is only a file: whatever it says, nothing outside the demo is removed.
func TestCleanRemovesNothingForeign(t *testing.T) {
	root := t.TempDir()
	h := Home{Dir: filepath.Join(root, "demo")}
	for _, dir := range []string{"demo/east", "demo/notes", "other", "run/" + h.hash()} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	exists := func(dir string) bool {
		_, err := os.Stat(filepath.Join(root, dir))
		return err == nil
	}
	r := record{RunDir: filepath.Join(root, "other"), Clusters: []string{"east", "../other", "..", ".", ""}}
	if err := h.clean(r, true); err != nil {
		t.Fatal(err)
	}
	if exists("demo/east") || !exists("demo/notes") || !exists("other") || !exists("demo") {
		t.Error("removed more or less than the demo's own cluster")
	}
	if err := h.clean(record{RunDir: filepath.Join(root, "run", h.hash())}, false); err != nil || exists("run/"+h.hash()) {
		t.Errorf("the demo's own sockets stay: %v", err)
	}
}

func TestRunFolder(t *testing.T) {
	base, err := os.MkdirTemp("/tmp", "run")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	h := Home{Dir: "/" + strings.Repeat("long/", 100)}
	t.Setenv("XDG_RUNTIME_DIR", base)
	run, err := h.runFolder()
	if err != nil || filepath.Dir(run) != filepath.Join(base, "isthmus") {
		t.Errorf("run folder %q, %v; want one in %s", run, err, base)
	}
	st, err := os.Stat(filepath.Dir(run))
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("its base: %v, %v", st.Mode(), err)
	}
	longest := filepath.Join(run, "north/proxy/storefront-1-and-some-longer-name/agent.sock")
	if len(longest) > 107 {
		t.Errorf("%s is longer than a socket's path may be", longest)
	}
	// One that others may write is passed by, as is a path that is too long.
	if err := os.Chmod(filepath.Dir(run), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := guarded(filepath.Dir(run)); err == nil {
		t.Error("a folder open to all was taken")
	}
	if err := guarded(filepath.Join(base, strings.Repeat("x", 60))); err == nil {
		t.Error("a path too long was taken")
	}
}

func TestLogs(t *testing.T) {
	h := Home{Dir: t.TempDir()}
	if _, err := h.Logs(""); hint.CodeOf(err) != "not_found" {
		t.Errorf("no demo at all: %v", err)
	}
	for _, f := range []string{"log/supervisor.log", "east/log/gateway.log", "east/log/ratings-1/app.log", "east/etcd/x.log"} {
		path := filepath.Join(h.Dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.write(record{Clusters: []string{"east", "west"}}); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]string{
		"": "supervisor east/gateway east/ratings-1/app", "east": "east/gateway east/ratings-1/app",
		"east/gateway": "east/gateway", "east/ratings-1": "east/ratings-1/app", "supervisor": "supervisor", "west": "", "east/gate": "",
	} {
		files, err := h.Logs(target)
		var names []string
		for _, f := range files {
			names = append(names, f.Name)
		}
		if got := strings.Join(names, " "); got != want || (err == nil) != (want != "") {
			t.Errorf("logs %q: %q, %v; want %q", target, got, err, want)
		}
	}
}

package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/supervisor"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/workload"
)

// The programs of the demo are replaced by stand-ins: this test program under
// their names. They do what the plumbing can see of the real ones, and tell
// what they can see of the plumbing.

// binEnv is the folder with the stand-ins. storyEnv has a story told; its value is the error with which it ends, or "well".
const (
	binEnv   = "ISTHMUS_TEST_BIN"
	storyEnv = "ISTHMUS_TEST_STORY"
)

func TestMain(m *testing.M) {
	standIns := map[string]func([]string) error{
		"isthmus-controlplane": controlPlane,
		"isthmus-proxy":        proxy,
		"isthmus-shop":         shop,
		"isthmus":              isthmus,
		"envoy":                func([]string) error { select {} },
		"get":                  get,
	}
	if f := standIns[filepath.Base(os.Args[0])]; f != nil && (len(os.Args) < 2 || os.Args[1] != "demo") {
		exitOn(f(os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "demo" {
		exitOn(command(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// command is `isthmus demo` with stand-ins.
func command(args []string) error {
	cmd := Command(Config{
		Story:     story(os.Getenv(storyEnv)),
		Registrar: fakeRegistrar{},
		Answered:  answered,
		Programs: func(string) (supervisor.Programs, error) {
			bin := os.Getenv(binEnv)
			return supervisor.Programs{
				Isthmus: bin + "/isthmus", ControlPlane: bin + "/isthmus-controlplane", Proxy: bin + "/isthmus-proxy",
				Shop: bin + "/isthmus-shop", Envoy: bin + "/envoy",
			}, nil
		},
	})
	cmd.AddCommand(&cobra.Command{Use: "hold", Args: cobra.ExactArgs(3), RunE: hold})
	root := &cobra.Command{Use: "isthmus", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().String("dir", "", "")
	root.PersistentFlags().StringP("output", "o", "", "")
	root.AddCommand(cmd)
	root.SetArgs(append([]string{"demo"}, args...))
	return root.ExecuteContext(context.Background())
}

// story says one line and ends as it is told to.
func story(end string) func(context.Context, Live) error {
	if end == "" {
		return nil
	}
	return func(context.Context, Live) error {
		fmt.Println("the story")
		if end != "well" {
			return errors.New(end)
		}
		return nil
	}
}

// hold holds a workload (cluster, namespace, name) with a program in it, prints that one's number and waits for its end.
func hold(cmd *cobra.Command, args []string) error {
	c, err := client(cmd)
	if err != nil {
		return err
	}
	w, err := c.NewWorkload(cmd.Context(), workload.Request{Cluster: args[0], Namespace: args[1], Name: args[2]})
	if err != nil {
		return err
	}
	run, err := c.Start(cmd.Context(), control.Exec{
		ExecRequest: control.ExecRequest{Cluster: args[0], Pod: w.Pod, Argv: []string{"sleep", "1002"}},
		Files:       []*os.File{os.Stdin, os.Stderr, os.Stderr},
	})
	if err != nil {
		return err
	}
	fmt.Println(run.PID)
	_, err = run.Wait()
	return err
}

// answered asks the first local instance; between clusters there is no stand-in.
func answered(ctx context.Context, live Live, from string, to topology.Service) error {
	_, err := live.Client.Caller(ctx, from, "")
	return err
}

// member is the file beside an admin socket that says that its cluster joined.
func member(admin string) string { return filepath.Join(filepath.Dir(admin), "member") }

type fakeRegistrar struct{}

func (fakeRegistrar) Register(ctx context.Context, admin string, w supervisor.Workload) ([]byte, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", admin)
	if err != nil {
		return nil, err
	}
	conn.Close()
	if err := os.WriteFile(registered(admin, w.Namespace, w.Name), nil, 0o600); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "token of %s %s/%s known=%t", w.Kind, w.Namespace, w.Name, w.Known), nil
}

// registered is the file beside an admin socket that says that a workload is known.
func registered(admin, namespace, name string) string {
	return filepath.Join(filepath.Dir(admin), namespace+"."+name)
}

func (fakeRegistrar) Deregister(ctx context.Context, admin, namespace, name string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", admin)
	if err != nil {
		return err
	}
	return errors.Join(conn.Close(), os.RemoveAll(registered(admin, namespace, name)))
}

func (fakeRegistrar) Member(_ context.Context, admin string) (bool, error) {
	_, err := os.Stat(member(admin))
	return err == nil, nil
}

// flag is the value of a flag in a stand-in's arguments.
func flag(args []string, name string) string {
	if i := slices.Index(args, "--"+name); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	_ = os.Remove(path)
	return net.Listen("unix", path)
}

func controlPlane(args []string) error {
	l, err := listenUnix(filepath.Join(flag(args, "run"), "admin.sock"))
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	return s.Serve(l)
}

func isthmus(args []string) error {
	admin, line := flag(args, "admin"), strings.Join(args, " ")
	switch {
	case strings.Contains(line, "cluster init"):
		fmt.Println("{}")
		return os.WriteFile(member(admin), nil, 0o600)
	case strings.Contains(line, "token create"):
		fmt.Println(`{"token":"isth1.stand-in"}`)
		return nil
	case strings.Contains(line, "cluster join"):
		token, err := io.ReadAll(os.Stdin)
		if err != nil || string(token) != "isth1.stand-in\n" || flag(args, "token") != "-" {
			return fmt.Errorf("token %q, %v", token, err)
		}
		// The authority is reached at its gateway only, over the link.
		conn, err := net.DialTimeout("tcp", "172.30.0.11:15443", 5*time.Second)
		if err != nil {
			fmt.Fprintln(os.Stderr, `{"error":{"code":"unreachable","message":"`+err.Error()+`"}}`)
			return err
		}
		conn.Close()
		fmt.Println(`{"cluster":"x","phases":[{"name":"admit","ms":1.5}],"totalMs":2.5}`)
		return os.WriteFile(member(admin), nil, 0o600)
	}
	return fmt.Errorf("what is %s", line)
}

// proxy keeps the token it was given, as the real one keeps its identity.
func proxy(args []string) error {
	identity := filepath.Join(flag(args, "dir"), "identity")
	if flag(args, "token-fd") == "3" {
		token, err := io.ReadAll(os.NewFile(3, "token"))
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(identity), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(identity, token, 0o600); err != nil {
			return err
		}
	}
	token, err := os.ReadFile(identity)
	if err != nil {
		return err
	}
	fmt.Printf("%s; %s\n", token, rights())
	// In a process group of its own, as an agent may start Envoy.
	envoy := exec.Command(flag(args, "envoy"))
	envoy.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := envoy.Start(); err != nil {
		return err
	}
	if args[0] == "gateway" {
		l, err := net.Listen("tcp", ":15443")
		if err != nil {
			return err
		}
		go func() {
			_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "%s at %s from %s", r.Header.Get("Marker"), flag(args, "run"), r.RemoteAddr)
			}))
		}()
	}
	l, err := listenUnix(filepath.Join(flag(args, "run"), "proxy", flag(args, "name"), "agent.sock"))
	if err != nil {
		return err
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ready", "/drain":
		case "/stats":
			fmt.Fprint(w, `{"stats":[{"name":"listener.127.0.0.1_15001.downstream_cx_active","value":0}]}`)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
}

// shop answers what it is and what it could do.
func shop(args []string) error {
	parts := strings.Split(flag(args, "port"), ":")
	l, err := net.Listen("tcp", ":"+parts[1])
	if err != nil {
		return err
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{
			"instance": flag(args, "cluster") + "/" + flag(args, "instance"), "peer": r.RemoteAddr, "rights": rights(),
		})
	}))
}

// codeTimedOut is the exit code of get when nothing answers at all.
const codeTimedOut = 28

// get sends one HTTP request, with a marker in a header, and prints the answer.
func get(args []string) error {
	request, err := http.NewRequest(http.MethodGet, "http://"+args[0]+"/", nil)
	if err != nil {
		return err
	}
	if len(args) > 1 {
		request.Header.Set("Marker", args[1])
	}
	client := http.Client{Timeout: 2 * time.Second}
	reply, err := client.Do(request)
	if os.IsTimeout(err) {
		os.Exit(codeTimedOut)
	}
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	_, err = io.Copy(os.Stdout, reply.Body)
	return err
}

// rights tells what this process may do to the network, and its ids.
func rights() string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	mark := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x1337)
	packet, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err == nil {
		unix.Close(packet)
	}
	return fmt.Sprintf("uid=%d mark=%v packets=%v", os.Getuid(), denied(mark), denied(err))
}

func denied(err error) string {
	if errors.Is(err, unix.EPERM) {
		return "denied"
	}
	return fmt.Sprint(err)
}

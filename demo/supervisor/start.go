package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/demo/process"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/hint"
)

const (
	// readyLimit is how long a component may take to be ready; ten times what the
	// slowest needs on two processors with all of them starting.
	readyLimit = 60 * time.Second
	// registerLimit bounds a registration, so that a frozen control plane does
	// not keep its cluster's proxies from being restored.
	registerLimit = 5 * time.Second
	// checkLimit bounds one look at whether a component is ready.
	checkLimit = 500 * time.Millisecond
)

// passed are the variables of the demo's own environment that its processes
// get: what a language runtime needs and nothing that names a place.
var passed = []string{"PATH", "LANG", "LC_ALL", "TZ", "GODEBUG", "GOMAXPROCS", "GORACE", "GOCOVERDIR"}

func environment() []string {
	var env []string
	for _, name := range passed {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// start starts components that do not run, some at a time, and waits until all
// are ready.
func (s *Supervisor) start(ctx context.Context, c *cluster, list []*component) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, co := range list {
		g.Go(func() error {
			if err := s.starting.Acquire(ctx, 1); err != nil {
				return err
			}
			defer s.starting.Release(1)
			p, err := s.launch(ctx, c, co)
			if err != nil {
				return fmt.Errorf("start %s/%s: %w", c.Name, co.Name, err)
			}
			return s.awaitReady(ctx, c, co, p)
		})
	}
	return g.Wait()
}

// launch starts a component unless it runs, and returns its process.
func (s *Supervisor) launch(ctx context.Context, c *cluster, co *component) (*process.Process, error) {
	co.op.Lock()
	defer co.op.Unlock()
	if p := c.current(co); p != nil {
		return p, nil
	}
	token, err := s.token(ctx, c, co)
	if err != nil {
		return nil, err
	}
	spec := s.spec(c, co, token != nil)
	logPath := c.log(co.Name)
	if err := os.MkdirAll(filepath.Dir(logPath), 0o700); err != nil {
		return nil, fmt.Errorf("prepare its log: %w", err)
	}
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open its log: %w", err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	spec.Files = []*os.File{null, log, log}
	if token != nil {
		f, err := tokenFile(token)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		spec.Files = append(spec.Files, f)
	}
	p, err := s.collector.Start(spec)
	if err != nil {
		return nil, err
	}
	// Fails only if it has ended already, which awaitReady will tell.
	hostPID, _ := s.Tree.HostPIDOf(p.PID())
	c.mu.Lock()
	co.process, co.hostPID, co.frozen = p, hostPID, false
	c.mu.Unlock()
	return p, nil
}

// spec is how a component is started, but for its files.
func (s *Supervisor) spec(c *cluster, co *component, token bool) process.Spec {
	spec := process.Spec{Env: environment(), Dir: c.data, Net: c.node.Namespace, Mounts: c.mounts, Umask: 0o077}
	switch co.Kind {
	case topology.KindControlPlane:
		spec.Argv = s.Programs.controlPlaneArgs(c.folders)
	case topology.KindGateway:
		spec.Argv = s.Programs.gatewayArgs(c.folders, token)
	case topology.KindSidecar:
		spec.Argv = s.Programs.sidecarArgs(c.folders, co.pod.workload, token)
		spec.Net, spec.NetAdmin = co.pod.ns, true
	case topology.KindApp:
		spec.Argv = s.Programs.appArgs(c.Name, co.pod.instance)
		spec.Net = co.pod.ns
	}
	spec.Path = spec.Argv[0]
	return spec
}

// token registers a proxy and returns its one-use token; nil for what is not a
// proxy, and for one that must do with the identity it has on disk because its
// control plane does not answer.
func (s *Supervisor) token(ctx context.Context, c *cluster, co *component) ([]byte, error) {
	var w Workload
	switch co.Kind {
	case topology.KindGateway:
		w = gatewayWorkload(c.Cluster)
	case topology.KindSidecar:
		w = co.pod.workload
	default:
		return nil, nil
	}
	c.mu.Lock()
	w.Known = co.known
	c.mu.Unlock()
	control := c.byKind(topology.KindControlPlane)[0]
	if w.Known && c.current(control) == nil {
		return nil, nil
	}
	token, err := s.register(ctx, c, w)
	switch {
	case err == nil:
		c.mu.Lock()
		co.known = true
		c.mu.Unlock()
		return token, nil
	case w.Known && ctx.Err() == nil:
		s.Log.Warn("proxy restarts without a new token", "cluster", c.Name, "component", co.Name, "err", err)
		return nil, nil
	}
	return nil, fmt.Errorf("register it: %w", err)
}

// register tries until it succeeds, is refused or time is up: a control plane that
// has just joined may need a moment before it issues identities.
func (s *Supervisor) register(ctx context.Context, c *cluster, w Workload) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, registerLimit)
	defer cancel()
	var last error
	for {
		token, err := s.Registrar.Register(ctx, c.admin(), w)
		if err == nil {
			return token, nil
		}
		if refused(err) {
			return nil, err
		}
		// The end of time says less than what was wrong before.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return nil, last
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// refused tells whether asking again would give the same answer.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.AlreadyExists, codes.NotFound:
		return true
	case codes.FailedPrecondition:
		return hint.CodeOf(err) != "alone"
	}
	return false
}

// tokenFile is a pipe that holds the token: it is gone once read, and was never
// in a file or a command line.
func tokenFile(token []byte) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("hand over its token: %w", err)
	}
	defer w.Close()
	// A pipe holds 4096 bytes without a reader everywhere, far more than a token.
	if _, err := w.Write(token); err != nil {
		r.Close()
		return nil, fmt.Errorf("hand over its token: %w", err)
	}
	return r, nil
}

// awaitReady waits until the component answers, its process ends or time is up.
func (s *Supervisor) awaitReady(ctx context.Context, c *cluster, co *component, p *process.Process) error {
	timer := time.NewTimer(readyLimit)
	defer timer.Stop()
	var last error
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if last = s.check(ctx, c, co); last == nil {
			return nil
		}
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.Done():
			err = fmt.Errorf("%s/%s ended before it was ready: %s", c.Name, co.Name, p.Status())
		case <-timer.C:
			err = fmt.Errorf("%s/%s is not ready after %s: %w", c.Name, co.Name, readyLimit, last)
		case <-time.After(pause):
			continue
		}
		return hint.Wrapf(hint.Code(err, "not_ready"), "see the end of its log: %s%s", c.log(co.Name), lastLines(c.log(co.Name)))
	}
}

// check tells whether a component is ready: nil, or why not.
func (s *Supervisor) check(ctx context.Context, c *cluster, co *component) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	switch co.Kind {
	case topology.KindControlPlane:
		return checkControlPlane(ctx, c.admin())
	case topology.KindGateway:
		return checkProxy(ctx, c.agent(gatewayName))
	case topology.KindSidecar:
		return checkProxy(ctx, c.agent(co.Instance))
	case topology.KindApp:
		return checkApp(ctx, co.pod)
	}
	return errors.New("unknown kind of component " + string(co.Kind))
}

// checkControlPlane asks the standard gRPC health service on the admin socket.
func checkControlPlane(ctx context.Context, socket string) error {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	reply, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if reply.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("its health is %s", reply.GetStatus())
	}
	return nil
}

// checkProxy asks the agent on its status socket.
func checkProxy(ctx context.Context, socket string) error {
	_, err := askAgent(ctx, socket, http.MethodGet, "/ready")
	return err
}

// askAgent sends a request to an agent's status socket and returns what it answers.
func askAgent(ctx context.Context, socket, method, page string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, method, "http://agent"+page, nil)
	if err != nil {
		return nil, err
	}
	reply, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("its status socket answers %s", reply.Status)
	}
	return io.ReadAll(reply.Body)
}

// checkApp connects to the application from inside its own pod, by loopback,
// where nothing is redirected.
func checkApp(ctx context.Context, p *pod) error {
	return p.ns.Do(func() error {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p.instance.Service.Port)))
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// lastLines is the end of a log for an error message, empty if there is none.
func lastLines(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return ""
	}
	const most = 600 // bytes: about five lines
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return "\n" + string(b)
}

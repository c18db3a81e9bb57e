package call

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint"
)

// Namespace is that of the callers.
const Namespace = "shop"

// workerName is the hidden command that runs in the caller's pod.
const workerName = "call-worker"

// lookupTimeout bounds the question for a port: a control plane that is frozen must not keep requests from being sent.
const lookupTimeout = 2 * time.Second

// maxConfig bounds what the worker reads, in bytes.
const maxConfig = 1 << 20

// Execer runs a program to its end in the pod of a place, with stdin as its standard input, and returns its standard
// output. Its standard error goes where the command's goes. An exit code other than 0 is an error.
type Execer interface {
	Exec(ctx context.Context, place Place, argv []string, stdin []byte) (stdout []byte, err error)
}

// options is what was typed.
type options struct {
	from, to, account, protocol string
	headers                     []string
	timeout                     time.Duration
	config                      Config
}

// Command is `isthmus demo call`. The worker is started as the same program with the same parent commands, so
// WorkerCommand must be added where Command is.
func Command(exec Execer, services Services) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "call --from CLUSTER[/ZONE] --to HOST[:PORT][/PATH]",
		Short: "Send requests from a workload of the demo and say who answered",
		Long: `Sends requests from the workload "caller" (namespace shop) of a cluster, through its sidecar, and reports what came of
them. Failed requests are part of the result: the exit code is 0 unless the requests could not be sent at all.

PORT is by default the service's only port, and 80 where that is not known; the protocol is that of the port.
With --rps request number i is due i/R seconds after the first and its latency counts from then, whatever happened to
the ones before it. Nothing is ever sent twice.

For gRPC, PATH is /package.Service/Method (by default the shop's Echo/Call). The shop's services take the parameters
status=503, delay=200ms and size=10k in PATH's query.`,
		Example: `  isthmus demo call --from east --to reviews.shop.svc.clusterset.local --count 100
  isthmus demo call --from north --to inventory.shop.svc.clusterset.local -o json
  isthmus demo call --from east/eu-b --to 'ratings/?delay=50ms' --rps 200 --count 1000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.config.TimeoutMs = float64(o.timeout.Microseconds()) / 1000
			return o.run(cmd, exec, services)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.from, "from", "", "cluster, and zone, that the requests come from")
	flags.StringVar(&o.to, "to", "", "host, port and path that they go to")
	flags.IntVar(&o.config.Count, "count", 1, "number of requests")
	flags.IntVar(&o.config.Concurrency, "concurrency", 1, "requests kept under way at once; with --rps as many as are due")
	flags.Float64Var(&o.config.RPS, "rps", 0, "requests a second, in open loop (0: each when one before it is done)")
	flags.StringVar(&o.config.Method, "method", "GET", "HTTP method")
	flags.StringArrayVar(&o.headers, "header", nil, "request header as name=value (repeatable)")
	flags.IntVar(&o.config.BodyBytes, "body-bytes", 0, "bytes of body in each request")
	flags.DurationVar(&o.timeout, "timeout", DefaultTimeout, "longest time of one request")
	flags.BoolVar(&o.config.NoReuse, "no-reuse", false, "open a connection for every request")
	flags.StringVar(&o.protocol, "protocol", "", "http, grpc or tcp (default: what the service speaks, http where that is not known)")
	flags.StringVar(&o.account, "as", "caller", "service account of the caller")
	return cmd
}

// usage marks an error in what was typed.
func usage(err error) error {
	return hint.Wrap(hint.Code(err, exit.CodeUsage), "see isthmus demo call --help")
}

// run has the requests sent and prints the result.
func (o options) run(cmd *cobra.Command, exec Execer, services Services) error {
	printer, err := printerOf(cmd)
	if err != nil {
		return usage(err)
	}
	if o.timeout <= 0 {
		return usage(fmt.Errorf("--timeout %s: want more than 0", o.timeout))
	}
	place, err := ParsePlace(o.from, o.account)
	if err != nil {
		return usage(fmt.Errorf("--%w", err))
	}
	config, err := o.resolve(cmd.Context(), place, services, cmd.ErrOrStderr())
	if err != nil {
		return usage(err)
	}
	stdin, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode the requests to %s: %w", config.Host, err)
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	argv := append([]string{program}, strings.Fields(cmd.CommandPath())[1:]...)
	argv[len(argv)-1] = workerName
	stdout, err := exec.Exec(cmd.Context(), place, argv, stdin)
	if err != nil {
		return fmt.Errorf("call %s from %s: %w", config.Host, o.from, err)
	}
	var result Result
	if err := json.Unmarshal(stdout, &result); err != nil {
		return fmt.Errorf("call %s from %s: decode the result: %w", config.Host, o.from, err)
	}
	return printer.Print(output.View{Doc: result, Text: result.print})
}

// printerOf prints in the format of the flag -o, which every command inherits from the root.
func printerOf(cmd *cobra.Command) (output.Printer, error) {
	printer := output.Printer{Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr()}
	flag := cmd.Flag("output")
	if flag == nil {
		return printer, nil
	}
	var err error
	printer.Format, err = output.ParseFormat(flag.Value.String())
	return printer, err
}

// resolve turns what was typed into the worker's config. A registry that cannot be asked only costs the defaults that
// it would have given; log says so.
func (o options) resolve(ctx context.Context, place Place, services Services, log io.Writer) (Config, error) {
	config := o.config
	target, err := ParseTarget(o.to)
	if err != nil {
		return Config{}, fmt.Errorf("--%w", err)
	}
	for _, text := range o.headers {
		name, value, found := strings.Cut(text, "=")
		if !found {
			return Config{}, fmt.Errorf("--header %q: want name=value", text)
		}
		config.Headers = append(config.Headers, Header{Name: name, Value: value})
	}
	var known []Service
	if target.Port == 0 || o.protocol == "" {
		lookup, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		if known, err = services.Services(lookup, place.Cluster); err != nil {
			fmt.Fprintf(log, "isthmus: warning: the services of %s are not known, port and protocol may be wrong: %v\n", place.Cluster, err)
		}
	}
	config.Host, config.Path = target.Host, target.Path
	config.Port, config.Protocol = resolve(target, Protocol(strings.ToLower(o.protocol)), Namespace, known)
	return config, config.Validate()
}

// WorkerCommand is the hidden command that sends the requests from where it runs: Config on standard input, Result on
// standard output.
func WorkerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    workerName,
		Short:  "Send the requests that standard input describes",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			decoder := json.NewDecoder(io.LimitReader(cmd.InOrStdin(), maxConfig))
			decoder.DisallowUnknownFields()
			var config Config
			if err := decoder.Decode(&config); err != nil {
				return fmt.Errorf("decode the requests: %w", err)
			}
			result, err := Run(cmd.Context(), config)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
		},
	}
}

// print writes the result for a person. Names and errors are those of whoever answered.
func (r Result) print(p *output.Printer) {
	p.Printf("%d requests, %d failed, %.2f s\n", r.Requests, r.Failed, r.Seconds)
	p.Printf("latency   p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, max %.1f ms\n", r.P50Ms, r.P90Ms, r.P99Ms, r.MaxMs)
	for _, row := range []struct {
		name   string
		counts map[string]int
	}{{"code", r.ByCode}, {"cluster", r.ByCluster}, {"zone", r.ByZone}, {"instance", r.ByInstance}, {"version", r.ByVersion}} {
		if len(row.counts) == 0 {
			continue
		}
		parts := make([]string, 0, len(row.counts))
		for _, key := range slices.Sorted(maps.Keys(row.counts)) {
			parts = append(parts, fmt.Sprintf("%s %d", output.Clean(key), row.counts[key]))
		}
		p.Printf("%-9s %s\n", row.name, strings.Join(parts, ", "))
	}
	if r.FirstError != nil {
		p.Printf("error     %s\n", output.Clean(*r.FirstError))
	}
}

package cli

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
)

func newExplain(g *Globals) *cobra.Command {
	c := &cobra.Command{Use: "explain", Short: "Say what becomes of a call, and why"}
	c.AddCommand(newExplainRoute(g))
	return c
}

// explainDoc is the answer of explain route in JSON.
type explainDoc struct {
	From    string            `json:"from"`
	To      explainTargetDoc  `json:"to"`
	Verdict string            `json:"verdict"` // forwarded, refused, no-route
	Steps   []explainStepDoc  `json:"steps"`
	Shares  []explainShareDoc `json:"shares"`
}

type explainTargetDoc struct {
	Host string `json:"host"`
	Port uint32 `json:"port"`
	Path string `json:"path"`
}

// explainStepDoc is one decision; null is what no object says.
type explainStepDoc struct {
	Step     string               `json:"step"`
	Decision string               `json:"decision"`
	Reason   string               `json:"reason"`
	Object   *string              `json:"object"`
	Path     *string              `json:"path"`
	File     *string              `json:"file"`
	Line     *int32               `json:"line"`
	Rejected []explainRejectedDoc `json:"rejected"`
}

type explainRejectedDoc struct {
	Object string `json:"object"`
	Reason string `json:"reason"`
}

// explainShareDoc is what a zone of a cluster gets; an empty cluster is nobody.
type explainShareDoc struct {
	Cluster   string               `json:"cluster"`
	Zone      *string              `json:"zone"`
	Subset    *string              `json:"subset"`
	Host      string               `json:"host"`
	Predicted float64              `json:"predicted"`
	Measured  *float64             `json:"measured"` // null: nothing was measured
	Endpoints []explainEndpointDoc `json:"endpoints"`
}

type explainEndpointDoc struct {
	Name     string  `json:"name"`
	Healthy  bool    `json:"healthy"`
	Weight   uint32  `json:"weight"`
	Priority uint32  `json:"priority"`
	Excluded *string `json:"excluded"` // why proxies are not told of it
}

func newExplainRoute(g *Globals) *cobra.Command {
	var from, to, method, account string
	var headers, changes []string
	c := &cobra.Command{
		Use:   "route --from WORKLOAD[.NS] --to HOST[:PORT][/PATH]",
		Short: "Say which rule, cluster and endpoints take a call",
		Long: `Says what becomes of one call of a workload of this cluster, step by step, by the configuration that its sidecar is given: who
it is, which listener and rule take it, which clusters and endpoints get which share, through which gateway, and whether the
server lets it in. Nothing is sent. Shares are what configuration and health say; which endpoints a sidecar has just left out
by itself is not known.

WORKLOAD is an instance, or the service account, "app" label or service of several, the first of which is meant.

--if says what would be if something were otherwise, and may be repeated:
  cluster:NAME=gone       gateway:CLUSTER=gone     zone:CLUSTER/ZONE=gone   workload:NS/NAME=gone
  link:A-B=cut            evict:NAME               file:PATH                weight:NS/ROUTE:SUBSET=W
A file's objects count as if applied. W is the part of 100 that a subset of a VirtualService's destinations gets; those that
are not named share the rest. Nothing is changed.

The exit code is 0 for an answer, whatever it is, and 1 when there is no such workload or host.`,
		Example: `  isthmus explain route --from caller.shop --to reviews.shop.svc.clusterset.local:8080/
  isthmus explain route --from caller.shop --to reviews.shop.svc.clusterset.local --if cluster:north=gone`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			request, err := g.explainRequest(from, to, headers, changes)
			if err != nil {
				return err
			}
			request.Method, request.Account = method, account
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.mesh.Explain(ctx, request)
				if err != nil {
					return err
				}
				doc := docOfAnswer(response)
				return g.Printer.Print(output.View{Doc: doc, Names: []string{doc.Verdict}, Text: func(p *output.Printer) { printAnswer(p, doc) }})
			})
		},
	}
	flags := c.Flags()
	flags.StringVar(&from, "from", "", "workload that calls, INSTANCE[.NAMESPACE] or NAMESPACE/INSTANCE")
	flags.StringVar(&to, "to", "", "what it calls, HOST[:PORT][/PATH]")
	flags.StringVar(&method, "method", "GET", "HTTP method")
	flags.StringArrayVar(&headers, "header", nil, "header of the request, k=v; may be repeated")
	flags.StringVar(&account, "as", "", "service account that calls (default: the workload's own)")
	flags.StringArrayVar(&changes, "if", nil, "what would be otherwise; may be repeated")
	must(c.MarkFlagRequired("from"))
	must(c.MarkFlagRequired("to"))
	return c
}

// explainRequest reads the flags, and the files of changes.
func (g *Globals) explainRequest(from, to string, headers, changes []string) (*admin.ExplainRequest, error) {
	if from == "" {
		return nil, exit.Usagef("--from is empty")
	}
	request := &admin.ExplainRequest{From: from, Namespace: g.namespace()}
	if err := readTarget(request, to); err != nil {
		return nil, err
	}
	for _, h := range headers {
		name, value, ok := strings.Cut(h, "=")
		if name = strings.ToLower(strings.TrimSpace(name)); !ok || name == "" {
			return nil, exit.Usagef("--header %q is not k=v", h)
		}
		request.Headers = append(request.Headers, &admin.ExplainHeader{Name: name, Value: value})
	}
	for _, text := range changes {
		change := &admin.ExplainChange{Text: text}
		if path, ok := strings.CutPrefix(text, "file:"); ok && path != "" {
			raw, err := g.read(path)
			if err != nil {
				return nil, err
			}
			change.Yaml = raw
		}
		request.Changes = append(request.Changes, change)
	}
	return request, nil
}

// readTarget reads HOST[:PORT][/PATH]. A port that is not said is the control plane's to find.
func readTarget(request *admin.ExplainRequest, text string) error {
	authority, path := text, "/"
	if i := strings.IndexAny(text, "/?"); i >= 0 {
		authority, path = text[:i], "/"+strings.TrimPrefix(text[i:], "/")
	}
	host, port, said := strings.Cut(authority, ":")
	if host == "" || strings.Contains(text, "://") || strings.ContainsAny(host, " []@%") {
		return exit.Usagef("--to %q is not HOST[:PORT][/PATH]", text)
	}
	request.Host, request.Path = host, path
	if said {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return exit.Usagef("--to %q: port %q is not a number from 1 to 65535", text, port)
		}
		request.Port = uint32(n)
	}
	return nil
}

// known is nil for an empty text.
func known(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

func docOfAnswer(r *admin.ExplainResponse) explainDoc {
	doc := explainDoc{From: r.GetFrom(), To: explainTargetDoc{r.GetHost(), r.GetPort(), r.GetPath()}, Verdict: r.GetVerdict(),
		Steps: []explainStepDoc{}, Shares: []explainShareDoc{}}
	for _, s := range r.GetSteps() {
		step := explainStepDoc{Step: s.GetStep(), Decision: s.GetDecision(), Reason: s.GetReason(), Object: known(s.GetObject()),
			Path: known(s.GetPath()), File: known(s.GetFile()), Rejected: []explainRejectedDoc{}}
		if line := s.GetLine(); line > 0 {
			step.Line = &line
		}
		for _, o := range s.GetRejected() {
			step.Rejected = append(step.Rejected, explainRejectedDoc{o.GetObject(), o.GetReason()})
		}
		doc.Steps = append(doc.Steps, step)
	}
	for _, s := range r.GetShares() {
		share := explainShareDoc{Cluster: s.GetCluster(), Zone: known(s.GetZone()), Subset: known(s.GetSubset()), Host: s.GetHost(),
			Predicted: s.GetPredicted(), Endpoints: []explainEndpointDoc{}}
		for _, e := range s.GetEndpoints() {
			share.Endpoints = append(share.Endpoints, explainEndpointDoc{e.GetName(), e.GetHealthy(), e.GetWeight(), e.GetPriority(), known(e.GetExcluded())})
		}
		doc.Shares = append(doc.Shares, share)
	}
	return doc
}

// printAnswer prints the chain of decisions, numbered, then the shares.
func printAnswer(p *output.Printer, doc explainDoc) {
	color := output.Green
	if doc.Verdict != "forwarded" {
		color = output.Red
	}
	p.Printf("%s -> %s:%d%s: %s\n\n", output.Clean(doc.From), output.Clean(doc.To.Host), doc.To.Port, output.Clean(doc.To.Path), p.Paint(color, output.Clean(doc.Verdict)))
	const indent = "                   "
	for i, s := range doc.Steps {
		p.Printf("%2d  %-13s  %s\n", i+1, output.Clean(s.Step), output.Clean(s.Decision))
		if s.Reason != "" {
			p.Printf("%s%s\n", indent, output.Clean(s.Reason))
		}
		if s.Object != nil {
			p.Printf("%sby %s\n", indent, output.Clean(originOf(s)))
		}
		for _, r := range s.Rejected {
			p.Printf("%snot %s: %s\n", indent, output.Clean(r.Object), output.Clean(r.Reason))
		}
	}
	if len(doc.Shares) == 0 {
		return
	}
	p.Printf("\n")
	grid := output.NewGrid("SHARE", "CLUSTER", "ZONE", "SUBSET", "HOST", "ENDPOINTS", "LEFT OUT")
	for _, s := range doc.Shares {
		var told, left []string
		for _, e := range s.Endpoints {
			switch {
			case e.Excluded != nil:
				left = append(left, e.Name+" ("+*e.Excluded+")")
			case e.Healthy:
				told = append(told, e.Name)
			default:
				told = append(told, e.Name+" (unhealthy)")
			}
		}
		grid.Row(strconv.FormatFloat(math.Round(10_000*s.Predicted)/100, 'f', -1, 64)+" %", s.Cluster, orDash(s.Zone), orDash(s.Subset), s.Host,
			strings.Join(told, ", "), strings.Join(left, ", "))
	}
	grid.Print(p, "no shares")
}

// originOf writes where a decision was written: object, field, file and line, as far as they are known.
func originOf(s explainStepDoc) string {
	out := *s.Object
	if s.Path != nil {
		out += " " + *s.Path
	}
	switch {
	case s.File != nil && s.Line != nil:
		out += fmt.Sprintf(" (%s:%d)", *s.File, *s.Line)
	case s.File != nil:
		out += " (" + *s.File + ")"
	case s.Line != nil:
		out += fmt.Sprintf(" (line %d)", *s.Line)
	}
	return out
}

// orDash is a cell's text of what may be unknown.
func orDash(text *string) string {
	if text == nil {
		return ""
	}
	return *text
}

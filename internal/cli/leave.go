package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint"
)

// leaveDoc is what cluster leave prints in JSON.
type leaveDoc struct {
	Cluster    string `json:"cluster"`
	Federation string `json:"federation"`
	// BurntUntil is when the name may be used again; null of a control plane that does not say it yet.
	BurntUntil *string `json:"burntUntil"`
}

func newClusterLeave(g *Globals) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "leave",
		Short: "Leave the federation",
		Long: `Leaves the federation. It says first what stops, and until when this cluster cannot join again under its name. On a
terminal it then asks; without one it goes on, so that scripts can use it.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var before *admin.StatusResponse
			err := g.with(c.Context(), func(ctx context.Context, cp client) (err error) {
				if before, err = cp.federation.Status(ctx, &admin.StatusRequest{}); err != nil || before.GetRole() != "member" {
					return err // who is no member cannot leave: the control plane says why
				}
				services, err := cp.mesh.ListServices(ctx, &admin.ListServicesRequest{})
				if err != nil {
					return err
				}
				for _, line := range farewell(before, services.GetServices()) {
					g.Printer.Progressf("%s", output.Clean(line)) // names may be those of another cluster
				}
				return nil
			})
			if err != nil {
				return err
			}
			if before.GetRole() == "member" && !yes && output.IsTerminal(g.In) {
				if err := g.confirm(c.Context(), "leave the federation?"); err != nil {
					return fmt.Errorf("cluster %s stays in federation %s: %w", before.GetCluster(), before.GetFederation(), err)
				}
			}
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				left, err := cp.federation.Leave(ctx, &admin.LeaveRequest{})
				if err != nil {
					return err
				}
				doc := leaveDoc{Cluster: before.GetCluster(), Federation: before.GetFederation()}
				if t := left.GetBurntUntilUnix(); t != 0 {
					until := time.Unix(t, 0).UTC().Format(time.RFC3339)
					doc.BurntUntil = &until
				}
				return g.Printer.Print(output.View{Doc: doc, Names: []string{"cluster/" + doc.Cluster}, Text: func(p *output.Printer) {
					p.Printf("cluster %s left federation %s\n", doc.Cluster, doc.Federation)
				}})
			})
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// mostNamed bounds the services that are named in a line.
const mostNamed = 10

// farewell says what a member loses by leaving. It is said before anything is done, so the time is that of a cluster that
// leaves now.
func farewell(before *admin.StatusResponse, services []*admin.Service) []string {
	name := before.GetCluster()
	lines := []string{fmt.Sprintf("cluster %s is about to leave federation %s:", name, before.GetFederation())}
	until := "for as long as its certificates are valid" // of a control plane that does not say it yet
	if t := before.GetLeaveBurnsUntilUnix(); t != 0 {
		until = "until " + time.Unix(t, 0).UTC().Format(time.RFC3339)
	}
	lines = append(lines, fmt.Sprintf("- the name %s is burnt: no cluster can join as %s again %s; to come back sooner, join under another name", name, name, until))
	var exports, imports []string
	for _, s := range services {
		elsewhere := slices.ContainsFunc(s.GetClusters(), func(c *admin.ServiceCluster) bool { return c.GetName() != before.GetCluster() })
		if s.GetExported() {
			exports = append(exports, s.GetName()+"."+s.GetNamespace())
		}
		if elsewhere {
			imports = append(imports, s.GetHost())
		}
	}
	if len(exports) > 0 {
		lines = append(lines, "- other clusters can no longer call what it exports: "+some(exports))
	}
	if len(imports) > 0 {
		lines = append(lines, "- it can no longer call the instances that other clusters have of: "+some(imports))
	}
	return append(lines,
		"- its proxies keep their identity and go on within the cluster, but their certificates are not renewed and no workload can start; once it is in a federation again, start all of them again")
}

// some names the first of many.
func some(names []string) string {
	if more := len(names) - mostNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:mostNamed], ", "), more)
	}
	return strings.Join(names, ", ")
}

// confirm asks on the terminal, and returns an error unless the answer is yes.
func (g *Globals) confirm(ctx context.Context, question string) error {
	fmt.Fprintf(g.Printer.Err, "%s [y/N] ", question)
	answer := make(chan string, 1)
	// A terminal's read cannot be ended: where ctx ends first, the program ends with it.
	go func() {
		line, _ := bufio.NewReader(g.In).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case a := <-answer:
		if a == "y" || a == "yes" {
			return nil
		}
		return hint.Wrap(hint.Code(errors.New("the answer was not yes"), "declined"), "nothing was changed; --yes does not ask")
	}
}

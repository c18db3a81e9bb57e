package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/version"
)

// checksDoc is what check prints with -o json.
type checksDoc struct {
	Checks []checkDoc `json:"checks"`
}

type checkDoc struct {
	ID      string `json:"id"`
	Status  string `json:"status"` // ok, warn, fail
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

func newCheck(g *Globals) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check that the control plane and what it depends on are well",
		Long:  "Checks the control plane and what it depends on. Exit code 1 if a check fails; a control plane that cannot be reached is a failed check.",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			doc := checksDoc{Checks: []checkDoc{}}
			err := g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.mesh.Check(ctx, &admin.CheckRequest{})
				for _, check := range response.GetChecks() {
					doc.Checks = append(doc.Checks, checkDoc{check.GetId(), check.GetStatus(), check.GetMessage(), check.GetHint()})
				}
				return err
			})
			number, _, _ := exit.Of(err)
			if number == exit.Usage || number == exit.Interrupted {
				return err
			}
			if err != nil {
				if hint.Of(err) == "" {
					err = hint.Wrap(err, advice(number, c))
				}
				doc.Checks = append(doc.Checks, checkDoc{"control-plane", "fail", err.Error(), hint.Of(err)})
			}
			return g.printChecks(doc)
		},
	}
}

func (g *Globals) printChecks(doc checksDoc) error {
	failed := 0
	var names []string
	var firstHint string
	for _, check := range doc.Checks {
		names = append(names, check.ID)
		if check.Status == "fail" {
			failed++
			if firstHint == "" {
				firstHint = check.Hint
			}
		}
	}
	err := g.Printer.Print(output.View{Doc: doc, Names: names, Text: func(p *output.Printer) {
		colors := map[string]output.Color{"ok": output.Green, "warn": output.Yellow, "fail": output.Red}
		for _, check := range doc.Checks {
			p.Printf("%s %s: %s\n", p.Paint(colors[check.Status], fmt.Sprintf("%-4s", output.Clean(check.Status))), output.Clean(check.ID), output.Clean(check.Message))
			if check.Hint != "" && check.Status != "ok" {
				p.Printf("     fix: %s\n", output.Clean(check.Hint))
			}
		}
	}})
	if err != nil || failed == 0 {
		return err
	}
	return hint.Wrap(hint.Code(fmt.Errorf("%s failed", count(failed, "check")), "checks_failed"), firstHint)
}

// versionDoc is what version prints with -o json.
type versionDoc struct {
	Client       version.Info     `json:"client"`
	ControlPlane *controlPlaneDoc `json:"controlPlane"` // null if none was reached or asked for
}

type controlPlaneDoc struct {
	Version string `json:"version"`
	Cluster string `json:"cluster"`
}

func newVersion(g *Globals) *cobra.Command {
	var clientOnly bool
	c := &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program and of the control plane",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			doc := versionDoc{Client: version.Get()}
			var unreached error // the client's part is printed all the same
			if _, nowhere := g.AdminSocket(); !clientOnly && hint.CodeOf(nowhere) != exit.CodeUsage {
				unreached = g.with(c.Context(), func(ctx context.Context, cp client) error {
					status, err := cp.federation.Status(ctx, &admin.StatusRequest{})
					if err == nil {
						doc.ControlPlane = &controlPlaneDoc{status.GetVersion(), status.GetCluster()}
					}
					return err
				})
			}
			err := g.Printer.Print(output.View{Doc: doc, Names: []string{doc.Client.Version}, Text: func(p *output.Printer) { printVersion(p, doc) }})
			return errors.Join(unreached, err)
		},
	}
	c.Flags().BoolVar(&clientOnly, "client", false, "this program only; asks no control plane")
	return c
}

func printVersion(p *output.Printer, doc versionDoc) {
	p.Printf("client:        %s (%s, %s, for Envoy %s)\n", doc.Client.Version, doc.Client.Go, doc.Client.Platform, doc.Client.Envoy)
	if doc.ControlPlane == nil {
		return
	}
	p.Printf("control plane: %s\n", output.Clean(doc.ControlPlane.Version))
	if doc.ControlPlane.Version != doc.Client.Version {
		p.Progressf("isthmus: warning: client and control plane are of different versions; use the isthmus that came with the control plane")
	}
}

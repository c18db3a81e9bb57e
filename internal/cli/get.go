package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/hint/wire"
)

// listDoc is every list in JSON.
type listDoc[T any] struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Items      []T    `json:"items"`
}

// apiVersion is that of lists of what the CLI itself describes (clusters, services, proxies, tokens).
const apiVersion = "isthmus.dev/v1"

func newGet(g *Globals) *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:               "get KIND [NAME]",
		Short:             "Show configuration as it was applied, with its status",
		Example:           "  isthmus --cluster west get virtualservice -A\n  isthmus --cluster west get vs reviews -n shop -o yaml",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: completeKinds,
		RunE: func(c *cobra.Command, args []string) error {
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			if name != "" && g.AllNamespaces {
				return exit.Usagef("-A lists; %s %s is in one namespace, name it with -n", args[0], name)
			}
			if watch {
				return g.connected(c.Context(), func(ctx context.Context, cp client) error {
					return g.watch(ctx, cp, kindNamed(args[0]), name)
				})
			}
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				return g.get(ctx, cp, kindNamed(args[0]), name)
			})
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show the objects, then every change, one a line, until interrupted")
	return c
}

func (g *Globals) get(ctx context.Context, cp client, k kind, name string) error {
	request := &admin.GetRequest{Kind: k.name, Name: name, Namespace: g.namespace(), AllNamespaces: g.AllNamespaces}
	response, err := cp.config.Get(ctx, request)
	if err != nil {
		return explainMissing(err, k, g.namespace(), name)
	}
	stored := response.GetObjects()
	if name != "" && len(stored) == 0 {
		return explainMissing(status.Error(codes.NotFound, fmt.Sprintf("%s %s/%s does not exist", k.name, g.namespace(), name)), k, g.namespace(), name)
	}
	items := make([]map[string]any, 0, len(stored))
	var names []string
	for _, o := range stored {
		object, err := decodeObject(o)
		if err != nil {
			return err
		}
		items = append(items, object)
		names = append(names, resourceName(o.GetApiVersion(), o.GetKind(), o.GetName()))
	}
	var doc any = listDoc[map[string]any]{k.apiVersion, k.name + "List", items}
	if len(stored) > 0 {
		doc = listDoc[map[string]any]{stored[0].GetApiVersion(), stored[0].GetKind() + "List", items}
	}
	if name != "" {
		doc = items[0]
	}
	return g.Printer.Print(output.View{Doc: doc, Names: names, Text: func(p *output.Printer) {
		g.printObjects(p, k, stored, items)
	}})
}

func (g *Globals) printObjects(p *output.Printer, k kind, stored []*admin.Object, items []map[string]any) {
	wide := p.Format == output.Wide
	header := append([]string{"NAME"}, k.columns...)
	if g.AllNamespaces {
		header = append([]string{"NAMESPACE"}, header...)
	}
	if wide {
		header = append(header, "API VERSION", "LABELS", "REVISION")
	}
	grid := output.NewGrid(header...)
	for i, o := range stored {
		row := []string{o.GetName()}
		if g.AllNamespaces {
			row = []string{o.GetNamespace(), o.GetName()}
		}
		if k.cells != nil {
			row = append(row, k.cells(items[i])...)
		}
		if wide {
			row = append(row, o.GetApiVersion(), pairs(items[i], "metadata", "labels"), fmt.Sprint(o.GetVersion()))
		}
		grid.Row(row...)
	}
	where := "in namespace " + g.namespace()
	if g.AllNamespaces {
		where = "in any namespace"
	}
	grid.Print(p, fmt.Sprintf("no %s %s", k.name, where))
}

// eventDoc is one line of get -w -o json.
type eventDoc struct {
	Type     string         `json:"type"` // put, delete
	Revision int64          `json:"revision"`
	Object   map[string]any `json:"object"`
}

func (g *Globals) watch(ctx context.Context, cp client, k kind, name string) error {
	if f := g.Printer.Format; f == output.YAML {
		return exit.Usagef("-w prints one line an event; use -o json, name or table")
	}
	stream, err := cp.config.Watch(ctx, &admin.WatchRequest{Kind: k.name, Namespace: g.namespace(), AllNamespaces: g.AllNamespaces})
	if err != nil {
		return wire.Error(err)
	}
	types := map[admin.WatchEvent_Type]string{admin.WatchEvent_PUT: "put", admin.WatchEvent_DELETE: "delete"}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return wire.Error(err)
		}
		o := event.GetObject()
		what, shown := types[event.GetType()]
		if !shown || name != "" && o.GetName() != name {
			continue
		}
		object, err := decodeObject(o)
		if err != nil {
			return err
		}
		full := resourceName(o.GetApiVersion(), o.GetKind(), o.GetName())
		if g.Printer.Format == output.JSON {
			err = g.Printer.JSONLine(eventDoc{what, event.GetRevision(), object})
		} else {
			g.Printer.Printf("%s %s -n %s\n", what, output.Clean(full), output.Clean(o.GetNamespace()))
		}
		if err != nil {
			return err
		}
	}
}

func newDelete(g *Globals) *cobra.Command {
	return &cobra.Command{
		Use:               "delete KIND NAME",
		Short:             "Delete one object of configuration",
		Long:              "Deletes one object. What that leaves behind, such as a route to a subset that nobody defines any more, is said as a warning.",
		Example:           "  isthmus --cluster west delete virtualservice reviews -n shop",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeKinds,
		RunE: func(c *cobra.Command, args []string) error {
			if g.AllNamespaces {
				return exit.Usagef("delete takes one object: -A is not possible, name its namespace with -n")
			}
			k := kindNamed(args[0])
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.config.Delete(ctx, &admin.DeleteRequest{Kind: k.name, Namespace: g.namespace(), Name: args[1]})
				if err != nil {
					return explainMissing(err, k, g.namespace(), args[1])
				}
				full, findings := resourceName(k.apiVersion, k.name, args[1]), docOfFindings(response.GetFindings())
				return g.Printer.Print(output.View{
					Doc: map[string]any{
						"deleted":  map[string]string{"kind": k.name, "namespace": g.namespace(), "name": args[1]},
						"findings": findings,
					},
					Names: []string{full},
					Text: func(p *output.Printer) {
						printFindings(p, p.Progressf, findings)
						p.Printf("%s deleted\n", full)
					},
				})
			})
		},
	}
}

// explainMissing adds a hint to "not found": most often the namespace was forgotten.
func explainMissing(err error, k kind, namespace, name string) error {
	if status.Code(err) != codes.NotFound || hint.Of(err) != "" {
		return err
	}
	return hint.Wrapf(err, "look for it with: isthmus get %s -A (this looked for %s in namespace %s)", k.name, name, namespace)
}

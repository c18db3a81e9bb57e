package cli

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
)

func newService(g *Globals) *cobra.Command {
	c := &cobra.Command{Use: "service", Aliases: []string{"svc"}, Short: "Show services across clusters, export them"}
	c.AddCommand(newServiceList(g), newServiceExport(g), newServiceUnexport(g))
	return c
}

// serviceDoc is one service of service list in JSON.
type serviceDoc struct {
	Name      string              `json:"name"`
	Namespace string              `json:"namespace"`
	Host      string              `json:"host"`
	VIP       string              `json:"vip"`
	Ports     []servicePortDoc    `json:"ports"`
	Exported  bool                `json:"exported"`
	Clusters  []serviceClusterDoc `json:"clusters"`
}

type servicePortDoc struct {
	Name     string `json:"name"`
	Port     uint32 `json:"port"`
	Protocol string `json:"protocol"`
}

// serviceClusterDoc is what one cluster has of a service.
type serviceClusterDoc struct {
	Name       string            `json:"name"`
	Healthy    uint32            `json:"healthy"`
	Total      uint32            `json:"total"`
	Slots      uint32            `json:"slots"`
	Localities map[string]uint32 `json:"localities"` // "region/zone" → healthy
	AgeSeconds float64           `json:"ageSeconds"` // since this was heard; 0 for this cluster
}

func newServiceList(g *Globals) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "Show every service this cluster knows, and where its instances are",
		Long:    "Shows every service this cluster knows, its own and the imported ones; -n shows one namespace only.",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.mesh.ListServices(ctx, &admin.ListServicesRequest{})
				if err != nil {
					return err
				}
				doc := listDoc[serviceDoc]{apiVersion, "ServiceList", []serviceDoc{}}
				var names []string
				for _, s := range response.GetServices() {
					if g.Namespace != "" && s.GetNamespace() != g.Namespace {
						continue
					}
					doc.Items = append(doc.Items, docOfService(s))
					names = append(names, s.GetHost())
				}
				return g.Printer.Print(output.View{Doc: doc, Names: names, Text: func(p *output.Printer) { printServices(p, doc.Items) }})
			})
		},
	}
}

func docOfService(s *admin.Service) serviceDoc {
	doc := serviceDoc{Name: s.GetName(), Namespace: s.GetNamespace(), Host: s.GetHost(), VIP: s.GetVip(), Ports: []servicePortDoc{}, Exported: s.GetExported(), Clusters: []serviceClusterDoc{}}
	for _, p := range s.GetPorts() {
		doc.Ports = append(doc.Ports, servicePortDoc{p.GetName(), p.GetPort(), p.GetProtocol()})
	}
	for _, c := range s.GetClusters() {
		localities := c.GetLocalities()
		if localities == nil {
			localities = map[string]uint32{}
		}
		doc.Clusters = append(doc.Clusters, serviceClusterDoc{c.GetName(), c.GetHealthy(), c.GetTotal(), c.GetSlots(), localities, c.GetAgeSeconds()})
	}
	return doc
}

func printServices(p *output.Printer, services []serviceDoc) {
	header := []string{"NAMESPACE", "NAME", "PORTS", "EXPORTED", "CLUSTERS (HEALTHY/TOTAL)"}
	if p.Format == output.Wide {
		header = append(header, "VIP", "HOST", "LOCALITIES")
	}
	grid := output.NewGrid(header...)
	for _, s := range services {
		var ports, clusters, localities []string
		color := output.Plain
		for _, port := range s.Ports {
			ports = append(ports, fmt.Sprintf("%d/%s", port.Port, port.Protocol))
		}
		for _, c := range s.Clusters {
			clusters = append(clusters, fmt.Sprintf("%s %d/%d", c.Name, c.Healthy, c.Total))
			switch {
			case c.Healthy == 0 && c.Total > 0:
				color = output.Red
			case c.Healthy < c.Total && color == output.Plain:
				color = output.Yellow
			}
			for locality, healthy := range c.Localities {
				localities = append(localities, fmt.Sprintf("%s %d", locality, healthy))
			}
		}
		sort.Strings(localities)
		exported := "no"
		if s.Exported {
			exported = "yes"
		}
		row := []output.Cell{{Text: s.Namespace}, {Text: s.Name}, {Text: strings.Join(ports, ",")}, {Text: exported}, {Text: strings.Join(clusters, ", "), Color: color}}
		if p.Format == output.Wide {
			row = append(row, output.Cell{Text: s.VIP}, output.Cell{Text: s.Host}, output.Cell{Text: strings.Join(localities, ", ")})
		}
		grid.Cells(row...)
	}
	grid.Print(p, "no services")
}

func newServiceExport(g *Globals) *cobra.Command {
	var to []string
	c := &cobra.Command{
		Use:   "export NAME",
		Short: "Let other clusters call a service",
		Long: `Exports a service: every cluster of the federation, or those of --to, may call it as <name>.<namespace>.svc.clusterset.local.

All that a cluster exports may multiply to 100,000 (ports x slots x subsets; a slot is a pod, 64 at most). Where one more
service takes it beyond, the largest are announced with one slot a port and subset, and a warning says which.`,
		Example: "  isthmus --cluster west service export reviews -n shop --to east,north",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return g.export(c.Context(), &admin.ExportServiceRequest{Name: args[0], To: to})
		},
	}
	c.Flags().StringSliceVar(&to, "to", nil, "clusters that may call it, comma-separated (default: all)")
	return c
}

func newServiceUnexport(g *Globals) *cobra.Command {
	var from []string
	c := &cobra.Command{
		Use:   "unexport NAME",
		Short: "Take an export back; calls from other clusters are refused from then on",
		Long: `Takes an export back from every cluster, or from those of --to. What was exported to all is then exported to the other
members of today; clusters that join later may not call it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return g.export(c.Context(), &admin.ExportServiceRequest{Name: args[0], To: from, Unexport: true})
		},
	}
	c.Flags().StringSliceVar(&from, "to", nil, "clusters that may no longer call it, comma-separated (default: all)")
	return c
}

func (g *Globals) export(ctx context.Context, request *admin.ExportServiceRequest) error {
	if g.AllNamespaces {
		return exit.Usagef("%s is in one namespace: -A is not possible, name it with -n", request.GetName())
	}
	request.Namespace = g.namespace()
	return g.with(ctx, func(ctx context.Context, cp client) error {
		now, err := cp.mesh.ExportService(ctx, request)
		if err != nil {
			return explainMissing(err, kindNamed(config.KindService), request.GetNamespace(), request.GetName())
		}
		findings := docOfFindings(now.GetFindings())
		doc := map[string]any{"name": request.GetName(), "namespace": request.GetNamespace(), "exported": now.GetExported(), "to": orEmpty(now.GetTo())}
		if !request.GetUnexport() {
			doc["findings"] = findings
		}
		what := "no longer exported"
		switch {
		case now.GetExported() && len(now.GetTo()) > 0:
			what = "exported to " + strings.Join(now.GetTo(), ", ")
		case now.GetExported():
			what = "exported"
		}
		return g.Printer.Print(output.View{Doc: doc, Names: []string{"service/" + request.GetName()}, Text: func(p *output.Printer) {
			printFindings(p, p.Progressf, findings)
			p.Printf("service %s/%s is %s\n", request.GetNamespace(), request.GetName(), output.Clean(what))
		}})
	})
}

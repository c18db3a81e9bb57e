package cli

import (
	"context"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/cli/output"
)

func newProxy(g *Globals) *cobra.Command {
	c := &cobra.Command{Use: "proxy", Short: "Show the proxies of this cluster, and what each Envoy has"}
	config := newProxyConfig(g, "config")
	config.Aliases = []string{"pc"}
	c.AddCommand(newProxyStatus(g, "status"), config, newProxyLog(g))
	return c
}

// newProxyShort are the names that people know from istioctl; help shows the long ones.
func newProxyShort(g *Globals) []*cobra.Command {
	short := []*cobra.Command{newProxyStatus(g, "ps"), newProxyConfig(g, "pc")}
	for _, c := range short {
		c.Hidden = true
	}
	return short
}

// proxyDoc is one proxy of proxy status in JSON.
type proxyDoc struct {
	Instance  string       `json:"instance"`
	Kind      string       `json:"kind"`
	Version   string       `json:"version"`
	Connected bool         `json:"connected"`
	Clusters  proxyTypeDoc `json:"clusters"`
	Listeners proxyTypeDoc `json:"listeners"`
	Routes    proxyTypeDoc `json:"routes"`
	Endpoints proxyTypeDoc `json:"endpoints"`
	Secrets   proxyTypeDoc `json:"secrets"`
	Nack      *string      `json:"nack"` // what the proxy refused last and still refuses; null if nothing
}

// proxyTypeDoc is how far a proxy is with one type of xDS resource.
type proxyTypeDoc struct {
	Synced  bool   `json:"synced"`
	Version string `json:"version"`
}

func newProxyStatus(g *Globals, use string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: "Show which proxies are connected and whether they took their configuration",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.mesh.ProxyStatus(ctx, &admin.ProxyStatusRequest{})
				if err != nil {
					return err
				}
				doc := listDoc[proxyDoc]{apiVersion, "ProxyList", []proxyDoc{}}
				var names []string
				for _, p := range response.GetProxies() {
					doc.Items = append(doc.Items, docOfProxy(p))
					names = append(names, "proxy/"+p.GetInstance())
				}
				return g.Printer.Print(output.View{Doc: doc, Names: names, Text: func(p *output.Printer) { printProxies(p, doc.Items) }})
			})
		},
	}
}

func docOfProxy(p *admin.Proxy) proxyDoc {
	of := func(t *admin.ProxyType) proxyTypeDoc { return proxyTypeDoc{t.GetSynced(), t.GetVersion()} }
	doc := proxyDoc{Instance: p.GetInstance(), Kind: p.GetKind(), Version: p.GetVersion(), Connected: p.GetConnected(),
		Clusters: of(p.GetClusters()), Listeners: of(p.GetListeners()), Routes: of(p.GetRoutes()), Endpoints: of(p.GetEndpoints()), Secrets: of(p.GetSecrets())}
	if nack := p.GetNack(); nack != "" {
		doc.Nack = &nack
	}
	return doc
}

func printProxies(p *output.Printer, proxies []proxyDoc) {
	grid := output.NewGrid("INSTANCE", "KIND", "VERSION", "CONNECTED", "CLUSTERS", "LISTENERS", "ROUTES", "ENDPOINTS", "SECRETS", "REFUSED")
	for _, proxy := range proxies {
		connected := output.Cell{Text: "yes", Color: output.Green}
		if !proxy.Connected {
			connected = output.Cell{Text: "no", Color: output.Red}
		}
		row := []output.Cell{{Text: proxy.Instance}, {Text: proxy.Kind}, {Text: proxy.Version}, connected}
		for _, t := range []proxyTypeDoc{proxy.Clusters, proxy.Listeners, proxy.Routes, proxy.Endpoints, proxy.Secrets} {
			cell := output.Cell{Text: "synced", Color: output.Green}
			if !t.Synced {
				cell = output.Cell{Text: "stale", Color: output.Yellow}
			}
			if p.Format == output.Wide && t.Version != "" {
				cell.Text += " " + t.Version
			}
			row = append(row, cell)
		}
		refused := output.Cell{}
		if proxy.Nack != nil {
			refused = output.Cell{Text: *proxy.Nack, Color: output.Red}
		}
		grid.Cells(append(row, refused)...)
	}
	grid.Print(p, "no proxies")
}

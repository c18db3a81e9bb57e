package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
)

// configKind is one command of proxy config.
type configKind struct {
	use     string
	aliases []string
	short   string
	// subjects are the pages of Envoy's that are asked for and shown together.
	subjects []string
	// filters are the flags that narrow it down: name, fqdn, port.
	filters []string
	table   func(p *output.Printer, d *dump, now time.Time)
}

// configKinds are the commands but for all, in the order in which that one prints them.
var configKinds = []configKind{
	{"cluster", []string{"clusters", "c"}, "Show the clusters: the hosts that a proxy calls, by port and subset", []string{"clusters"}, []string{"name", "fqdn", "port"}, clusterTable},
	{"listener", []string{"listeners", "l"}, "Show the listeners: what a proxy takes, and where it goes", []string{"listeners"}, []string{"name", "port"}, listenerTable},
	{"route", []string{"routes", "r"}, "Show the routes: which request goes to which cluster", []string{"routes"}, []string{"name"}, routeTable},
	{"endpoint", []string{"endpoints", "ep", "e"}, "Show the endpoints of the clusters, with their health", []string{"endpoints", "hosts"}, []string{"name", "fqdn", "port"}, endpointTable},
	{"secret", []string{"secrets", "s"}, "Show the certificates and anchors, without keys", []string{"secrets"}, []string{"name"}, secretTable},
	{"bootstrap", []string{"b"}, "Show what Envoy was started with", []string{"bootstrap"}, nil, bootstrapTable},
}

// configAll shows everything in one document.
var configAll = configKind{use: "all", aliases: []string{"a"}, short: "Show all of it", subjects: []string{"all", "hosts"}, table: allTables}

func newProxyConfig(g *Globals, use string) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: "Show what a proxy's Envoy has been configured with",
		Long: `Shows the configuration that the Envoy of one proxy has now, as that Envoy tells it: NAME.NAMESPACE names the proxy, as
isthmus proxy status shows it; NAMESPACE/NAME is the same. Gateways are proxies too.

-o json is Envoy's own document, the one of its page /config_dump: {"configs":[…]} with one dump of each kind; endpoint
and all have beside it the "cluster_statuses" of its page /clusters. Envoy leaves private keys and session ticket keys
out. The proxy's agent is asked through its control plane; one that is away or stands still is the error proxy_away.`,
	}
	for _, kind := range append(slices.Clone(configKinds), configAll) {
		c.AddCommand(newProxyConfigKind(g, kind))
	}
	return c
}

func newProxyConfigKind(g *Globals, kind configKind) *cobra.Command {
	var only narrow
	c := &cobra.Command{
		Use:     kind.use + " NAME.NAMESPACE",
		Aliases: kind.aliases,
		Short:   kind.short,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			namespace, name, err := g.proxyName(args[0])
			if err != nil {
				return err
			}
			if only.port < 0 || only.port > 65535 {
				return exit.Usagef("--port %d is no port", only.port)
			}
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				d := &dump{Configs: []map[string]any{}}
				for _, subject := range kind.subjects {
					if err := cp.dump(ctx, namespace, name, subject, d); err != nil {
						return err
					}
				}
				d.narrow(only)
				return g.Printer.Print(output.View{Doc: d, Names: d.names(), Text: func(p *output.Printer) { kind.table(p, d, time.Now()) }})
			})
		},
	}
	for _, flag := range kind.filters {
		switch flag {
		case "name":
			c.Flags().StringVar(&only.name, flag, "", "only the one of this name in Envoy")
		case "fqdn":
			c.Flags().StringVar(&only.fqdn, flag, "", "only those of this host")
		case "port":
			c.Flags().IntVar(&only.port, flag, 0, "only those of this port")
		}
	}
	return c
}

// proxyName reads NAME.NAMESPACE or NAMESPACE/NAME. A namespace has no dot, a name may; with -n all of it is the name,
// unless it ends with that namespace.
func (g *Globals) proxyName(arg string) (namespace, name string, err error) {
	if g.AllNamespaces {
		return "", "", exit.Usagef("-A: a proxy is in one namespace")
	}
	namespace, name, given := strings.Cut(arg, "/")
	switch dot := strings.LastIndexByte(arg, '.'); {
	case given:
	case g.Namespace != "":
		namespace, name = g.Namespace, strings.TrimSuffix(arg, "."+g.Namespace)
	case dot >= 0:
		namespace, name = arg[dot+1:], arg[:dot]
	default:
		namespace, name = g.namespace(), arg
	}
	switch {
	case namespace == "" || name == "" || strings.Contains(name, "/"):
		return "", "", exit.Usagef("%q is no proxy: write NAME.NAMESPACE", arg)
	case g.Namespace != "" && g.Namespace != namespace:
		return "", "", exit.Usagef("%q is in another namespace than -n %s", arg, g.Namespace)
	}
	return namespace, name, nil
}

func allTables(p *output.Printer, d *dump, now time.Time) {
	for i, kind := range configKinds {
		if i > 0 {
			p.Printf("\n")
		}
		p.Printf("%s\n", strings.ToUpper(kind.use))
		kind.table(p, d, now)
	}
}

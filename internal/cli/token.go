package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

func newToken(g *Globals) *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Make, show and revoke the tokens with which clusters join"}
	c.AddCommand(newTokenCreate(g), newTokenList(g), newTokenRevoke(g))
	return c
}

// tokenDoc is what token create prints with -o json.
type tokenDoc struct {
	Token      string    `json:"token"`
	Cluster    string    `json:"cluster"`
	Expires    time.Time `json:"expires"`
	Namespaces []string  `json:"namespaces"`
}

func newTokenCreate(g *Globals) *cobra.Command {
	var namespaces []string
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a token with which one cluster, of this name, can join once",
		Long: `Makes a token on the authority. It is bound to the cluster's name and to the namespaces that cluster may export, can be
used once, and ends by itself. Alone on stdout, so that a script can pass it on; hand it over as you would a password.`,
		Example: "  isthmus --cluster east cluster token create west --namespaces shop",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := mesh.ClusterName(args[0]).Validate(); err != nil {
				return hint.Code(err, exit.CodeUsage)
			}
			if ttl < time.Second || ttl%time.Second != 0 {
				return exit.Usagef("--ttl %v is not a whole number of seconds, one or more", ttl)
			}
			request := &admin.CreateTokenRequest{Cluster: args[0], Namespaces: namespaces, TtlSeconds: int64(ttl / time.Second)}
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.federation.CreateToken(ctx, request)
				if err != nil {
					return err
				}
				doc := tokenDoc{response.GetToken(), response.GetCluster(), time.Unix(response.GetExpiresUnix(), 0).UTC(), orEmpty(namespaces)}
				return g.Printer.Print(output.View{Doc: doc, Names: []string{doc.Token}, Text: func(p *output.Printer) {
					p.Printf("%s\n", doc.Token)
					p.Progressf("for cluster %s, once, until %s; there: isthmus cluster join --token ...", doc.Cluster, doc.Expires.Format(time.RFC3339))
				}})
			})
		},
	}
	c.Flags().StringSliceVar(&namespaces, "namespaces", nil, "namespaces the cluster may export, comma-separated")
	c.Flags().DurationVar(&ttl, "ttl", 15*time.Minute, "life of the token")
	return c
}

// tokenInfoDoc is one token of token list in JSON; the token itself is never shown again.
type tokenInfoDoc struct {
	ID         string    `json:"id"`
	Cluster    string    `json:"cluster"`
	Namespaces []string  `json:"namespaces"`
	Expires    time.Time `json:"expires"`
	State      string    `json:"state"` // open, used, expired, revoked
}

func newTokenList(g *Globals) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "Show the tokens that were made, without their secrets",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.federation.ListTokens(ctx, &admin.ListTokensRequest{})
				if err != nil {
					return err
				}
				doc := listDoc[tokenInfoDoc]{apiVersion, "TokenList", []tokenInfoDoc{}}
				var names []string
				for _, t := range response.GetTokens() {
					doc.Items = append(doc.Items, tokenInfoDoc{t.GetId(), t.GetCluster(), orEmpty(t.GetNamespaces()), time.Unix(t.GetExpiresUnix(), 0).UTC(), t.GetState()})
					names = append(names, "token/"+t.GetId())
				}
				return g.Printer.Print(output.View{Doc: doc, Names: names, Text: func(p *output.Printer) {
					grid := output.NewGrid("ID", "CLUSTER", "NAMESPACES", "STATE", "EXPIRES")
					for _, t := range doc.Items {
						grid.Row(t.ID, t.Cluster, strings.Join(t.Namespaces, ","), t.State, t.Expires.Format(time.RFC3339))
					}
					grid.Print(p, "no tokens")
				}})
			})
		},
	}
}

func newTokenRevoke(g *Globals) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID|CLUSTER",
		Short: "Make an open token useless: one by its id, or all of a cluster",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.federation.RevokeToken(ctx, &admin.RevokeTokenRequest{Id: args[0]})
				if err != nil {
					return err
				}
				doc := map[string]any{"id": args[0], "revoked": response.GetRevoked()}
				return g.Printer.Print(output.View{Doc: doc, Names: []string{"token/" + args[0]}, Text: func(p *output.Printer) {
					p.Printf("revoked %s\n", count(int(response.GetRevoked()), "token"))
				}})
			})
		},
	}
}

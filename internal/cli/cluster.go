package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

func newCluster(g *Globals) *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "Found, join, leave and show a federation of clusters"}
	c.AddCommand(newClusterInit(g), newToken(g), newClusterJoin(g), newClusterLeave(g), newClusterList(g), newClusterStatus(g))
	return c
}

// phaseDoc is one step of founding or joining and how long it took.
type phaseDoc struct {
	Name string  `json:"name"`
	Ms   float64 `json:"ms"`
}

func docOfPhases(phases []*admin.Phase) (docs []phaseDoc, total float64) {
	docs = make([]phaseDoc, 0, len(phases))
	for _, phase := range phases {
		docs = append(docs, phaseDoc{phase.GetName(), phase.GetMs()})
		total += phase.GetMs()
	}
	return docs, total
}

func printPhases(p *output.Printer, phases []phaseDoc, total float64) {
	grid := output.NewGrid("PHASE", "MS")
	for _, phase := range phases {
		grid.Row(phase.Name, fmt.Sprintf("%.1f", phase.Ms))
	}
	grid.Row("total", fmt.Sprintf("%.1f", total))
	grid.Print(p, "")
}

// initDoc is what cluster init prints with -o json.
type initDoc struct {
	Cluster      string     `json:"cluster"`
	Federation   string     `json:"federation"`
	Role         string     `json:"role"`
	RecoveryFile string     `json:"recoveryFile"`
	Passphrase   string     `json:"passphrase,omitempty"`
	Phases       []phaseDoc `json:"phases"`
	TotalMs      float64    `json:"totalMs"`
}

func newClusterInit(g *Globals) *cobra.Command {
	var federation, region, passphraseFile string
	var gateways []string
	c := &cobra.Command{
		Use:   "init NAME --federation F",
		Short: "Make this cluster the authority of a new federation",
		Long: `Makes the control plane the authority of a new federation: it makes and holds the root of trust, and alone issues
tokens and admits clusters. A recovery file is written, encrypted with a passphrase: with both, another member can
take the authority's place. The passphrase is shown once unless it was given.`,
		Example: "  isthmus cluster init east --federation mesh.example.com --region eu --gateway 192.0.2.10:15443",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkNames(args[0], federation); err != nil {
				return err
			}
			passphrase, err := g.readSecret("passphrase", passphraseFile)
			if err != nil {
				return err
			}
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.federation.Init(ctx, &admin.InitRequest{Cluster: args[0], Federation: federation, Region: region, Gateways: gateways, Passphrase: passphrase})
				if err != nil {
					return err
				}
				doc := initDoc{Cluster: args[0], Federation: federation, Role: "authority", RecoveryFile: response.GetRecoveryFile(), Passphrase: response.GetPassphrase()}
				doc.Phases, doc.TotalMs = docOfPhases(response.GetPhases())
				return g.Printer.Print(output.View{Doc: doc, Names: []string{"cluster/" + args[0]}, Text: func(p *output.Printer) {
					p.Printf("cluster %s is the authority of federation %s\n", doc.Cluster, doc.Federation)
					p.Printf("recovery file: %s\n", doc.RecoveryFile)
					if doc.Passphrase != "" {
						p.Printf("passphrase:    %s\n", doc.Passphrase)
						p.Progressf("the passphrase is not shown again: keep it and the recovery file away from this machine, and apart")
					}
				}})
			})
		},
	}
	c.Flags().StringVar(&federation, "federation", "", "DNS name of the federation, two labels or more")
	c.Flags().StringVar(&region, "region", "", "region of this cluster")
	c.Flags().StringSliceVar(&gateways, "gateway", nil, "IP:PORT where other clusters reach this one; may be repeated")
	c.Flags().StringVar(&passphraseFile, "passphrase-file", "", "file with the recovery file's passphrase, - for stdin (default: one is made)")
	must(c.MarkFlagRequired("federation"))
	return c
}

// checkNames refuses names that no control plane accepts, before anything is asked of one.
func checkNames(cluster, federation string) error {
	if err := mesh.ClusterName(cluster).Validate(); err != nil {
		return hint.Code(err, exit.CodeUsage)
	}
	if err := mesh.FederationName(federation).Validate(); err != nil {
		return hint.Code(err, exit.CodeUsage)
	}
	return nil
}

// readSecret reads a secret from a file, or standard input for "-"; "" is no secret. Secrets are no arguments: those can
// be seen by every user of the machine.
func (g *Globals) readSecret(what, path string) (string, error) {
	var raw []byte
	var err error
	switch path {
	case "":
		return "", nil
	case "-":
		raw, err = io.ReadAll(g.In)
	default:
		raw, err = os.ReadFile(path)
	}
	if err != nil {
		return "", hint.Code(fmt.Errorf("read the %s: %w", what, err), "unreadable_file")
	}
	secret := strings.TrimSpace(string(raw))
	if secret == "" {
		return "", exit.Usagef("the %s in %s is empty", what, path)
	}
	return secret, nil
}

// joinDoc is what cluster join prints with -o json.
type joinDoc struct {
	Cluster    string     `json:"cluster"`
	Federation string     `json:"federation"`
	Phases     []phaseDoc `json:"phases"`
	TotalMs    float64    `json:"totalMs"`
}

func newClusterJoin(g *Globals) *cobra.Command {
	var token, region string
	var gateways []string
	c := &cobra.Command{
		Use:   "join --token T",
		Short: "Join the federation that made a token",
		Long: `Joins the federation whose authority made the token. The token says which cluster this becomes; with --cluster it must
be that one. On a member it fails and changes nothing. --token - reads the token from stdin.`,
		Example: "  isthmus --cluster west cluster join --token isth1... --region us --gateway 192.0.2.20:15443",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if token == "-" {
				secret, err := g.readSecret("token", "-")
				if err != nil {
					return err
				}
				token = secret
			}
			request := &admin.JoinRequest{Token: strings.TrimSpace(token), Region: region, Gateways: gateways, ExpectCluster: g.Cluster}
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.federation.Join(ctx, request)
				if err != nil {
					return err
				}
				doc := joinDoc{Cluster: response.GetCluster(), Federation: response.GetFederation(), TotalMs: response.GetTotalMs()}
				doc.Phases, _ = docOfPhases(response.GetPhases())
				return g.Printer.Print(output.View{Doc: doc, Names: []string{"cluster/" + doc.Cluster}, Text: func(p *output.Printer) {
					p.Printf("cluster %s joined federation %s in %.0f ms\n", doc.Cluster, doc.Federation, doc.TotalMs)
					if p.Format == output.Wide {
						printPhases(p, doc.Phases, doc.TotalMs)
					}
				}})
			})
		},
	}
	c.Flags().StringVar(&token, "token", "", "the token, - to read it from stdin")
	c.Flags().StringVar(&region, "region", "", "region of this cluster")
	c.Flags().StringSliceVar(&gateways, "gateway", nil, "IP:PORT where other clusters reach this one; may be repeated")
	must(c.MarkFlagRequired("token"))
	return c
}

// clusterDoc is one cluster of cluster list in JSON.
type clusterDoc struct {
	Name            string   `json:"name"`
	Role            string   `json:"role"`
	State           string   `json:"state"`
	LastSeenSeconds float64  `json:"lastSeenSeconds"`
	RoundTripMs     float64  `json:"roundTripMs"`
	Gateways        []string `json:"gateways"`
	DocumentSeq     uint64   `json:"documentSeq"`
	Region          string   `json:"region"`
	Self            bool     `json:"self"`
}

func newClusterList(g *Globals) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "Show the federation's clusters as this one sees them",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.federation.ListClusters(ctx, &admin.ListClustersRequest{})
				if err != nil {
					return err
				}
				doc := listDoc[clusterDoc]{apiVersion, "ClusterList", []clusterDoc{}}
				var names []string
				for _, m := range response.GetClusters() {
					doc.Items = append(doc.Items, clusterDoc{Name: m.GetName(), Role: m.GetRole(), State: m.GetState(), LastSeenSeconds: m.GetLastSeenSeconds(),
						RoundTripMs: m.GetRoundTripMs(), Gateways: orEmpty(m.GetGateways()), DocumentSeq: m.GetDocumentSeq(), Region: m.GetRegion(), Self: m.GetSelf()})
					names = append(names, "cluster/"+m.GetName())
				}
				return g.Printer.Print(output.View{Doc: doc, Names: names, Text: func(p *output.Printer) { printClusters(p, doc.Items) }})
			})
		},
	}
}

// stateColors colours the state of a cluster.
var stateColors = map[string]output.Color{"ready": output.Green, "suspect": output.Yellow, "dead": output.Red, "blocked": output.Red}

func printClusters(p *output.Printer, clusters []clusterDoc) {
	header := []string{"NAME", "ROLE", "STATE", "REGION", "LAST SEEN", "ROUND TRIP", "GATEWAYS"}
	if p.Format == output.Wide {
		header = append(header, "DOCUMENT")
	}
	grid := output.NewGrid(header...)
	for _, m := range clusters {
		seen, trip := ago(m.LastSeenSeconds), fmt.Sprintf("%.1f ms", m.RoundTripMs)
		if m.Self {
			seen = "this cluster"
		}
		if m.Self || m.RoundTripMs == 0 {
			trip = ""
		}
		row := []output.Cell{{Text: m.Name}, {Text: m.Role}, {Text: m.State, Color: stateColors[m.State]}, {Text: m.Region}, {Text: seen}, {Text: trip}, {Text: strings.Join(m.Gateways, ",")}}
		if p.Format == output.Wide {
			row = append(row, output.Cell{Text: strconv.FormatUint(m.DocumentSeq, 10)})
		}
		grid.Cells(row...)
	}
	grid.Print(p, "this cluster is in no federation; found one with: isthmus cluster init, or join one with: isthmus cluster join")
}

// statusDoc is cluster status in JSON.
type statusDoc struct {
	Cluster      string   `json:"cluster"`
	Federation   string   `json:"federation"`
	Role         string   `json:"role"`
	Region       string   `json:"region"`
	Ready        bool     `json:"ready"`
	DocumentTerm uint64   `json:"documentTerm"`
	DocumentSeq  uint64   `json:"documentSeq"`
	Version      string   `json:"version"`
	Gateways     []string `json:"gateways"`
}

func newClusterStatus(g *Globals) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what this control plane is and whether it serves",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				s, err := cp.federation.Status(ctx, &admin.StatusRequest{})
				if err != nil {
					return err
				}
				doc := statusDoc{s.GetCluster(), s.GetFederation(), s.GetRole(), s.GetRegion(), s.GetReady(), s.GetDocumentTerm(), s.GetDocumentSeq(), s.GetVersion(), orEmpty(s.GetGateways())}
				return g.Printer.Print(output.View{Doc: doc, Names: []string{"cluster/" + doc.Cluster}, Text: func(p *output.Printer) {
					grid := output.NewGrid("CLUSTER", "FEDERATION", "ROLE", "REGION", "READY", "DOCUMENT", "VERSION", "GATEWAYS")
					ready := output.Cell{Text: strconv.FormatBool(doc.Ready), Color: output.Green}
					if !doc.Ready {
						ready.Color = output.Red
					}
					grid.Cells(output.Cell{Text: doc.Cluster}, output.Cell{Text: doc.Federation}, output.Cell{Text: doc.Role}, output.Cell{Text: doc.Region}, ready,
						output.Cell{Text: fmt.Sprintf("%d.%d", doc.DocumentTerm, doc.DocumentSeq)}, output.Cell{Text: doc.Version}, output.Cell{Text: strings.Join(doc.Gateways, ",")})
					grid.Print(p, "")
				}})
			})
		},
	}
}

// orEmpty makes a missing list an empty one, so that JSON says [] and never null.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// ago prints an age in seconds with one unit.
func ago(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", seconds)
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0fs", seconds)
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0fm", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0fh", d.Hours())
	}
	return fmt.Sprintf("%.0fd", d.Hours()/24)
}

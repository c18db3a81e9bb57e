package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint"
)

// logLevels are Envoy's, from the most to the least.
var logLevels = []string{"trace", "debug", "info", "warning", "error", "critical", "off"}

// loggersDoc is what proxy log prints in JSON.
type loggersDoc struct {
	Instance string      `json:"instance"`
	Loggers  []loggerDoc `json:"loggers"`
}

type loggerDoc struct {
	Name  string `json:"name"`
	Level string `json:"level"`
}

func newProxyLog(g *Globals) *cobra.Command {
	var level string
	c := &cobra.Command{
		Use:   "log NAME.NAMESPACE",
		Short: "Show or set the levels of the loggers of a proxy's Envoy",
		Long: `Shows the levels of the loggers of one proxy's Envoy, and sets them before with --level: one for all loggers, or some by
name, or both: --level warning,http:debug,router:debug. The levels are ` + strings.Join(logLevels, ", ") + `.
They hold until that Envoy is started again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			namespace, name, err := g.proxyName(args[0])
			if err != nil {
				return err
			}
			levels, err := parseLevels(level)
			if err != nil {
				return err
			}
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				page, err := cp.inspect(ctx, &admin.InspectProxyRequest{Namespace: namespace, Name: name, Subject: "loggers", Levels: levels})
				if hint.CodeOf(err) == "proxy_refused" && len(levels) > 0 {
					err = hint.Wrapf(err, "isthmus proxy log %s shows its loggers", args[0])
				}
				if err != nil {
					return err
				}
				doc := loggersDoc{namespace + "/" + name, parseLoggers(string(page))}
				var names []string
				for _, l := range doc.Loggers {
					names = append(names, "logger/"+l.Name)
				}
				if len(levels) > 0 {
					g.Printer.Progressf("set; the levels hold until this Envoy is started again")
				}
				return g.Printer.Print(output.View{Doc: doc, Names: names, Text: func(p *output.Printer) {
					grid := output.NewGrid("LOGGER", "LEVEL")
					for _, l := range doc.Loggers {
						grid.Row(l.Name, l.Level)
					}
					grid.Print(p, "no loggers")
				}})
			})
		},
	}
	c.Flags().StringVar(&level, "level", "", "levels to set: LEVEL, or LOGGER:LEVEL,…")
	return c
}

// parseLevels reads LEVEL and LOGGER:LEVEL, several with commas between them; "" is the name of every logger.
func parseLevels(list string) (map[string]string, error) {
	if list == "" {
		return nil, nil
	}
	levels := map[string]string{}
	for _, one := range strings.Split(list, ",") {
		logger, level, named := strings.Cut(strings.TrimSpace(one), ":")
		if !named {
			logger, level = "", logger
		}
		_, twice := levels[logger]
		switch {
		case named && logger == "":
			return nil, exit.Usagef("--level %q names no logger before the colon", list)
		case !slices.Contains(logLevels, level):
			return nil, exit.Usagef("--level: %q is not one of %s", level, strings.Join(logLevels, ", "))
		case twice:
			return nil, exit.Usagef("--level %q sets one logger twice", list)
		}
		levels[logger] = level
	}
	return levels, nil
}

// parseLoggers reads Envoy's list: a line "  NAME: LEVEL" for each.
func parseLoggers(page string) []loggerDoc {
	loggers := []loggerDoc{}
	for line := range strings.Lines(page) {
		name, level, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if ok && slices.Contains(logLevels, level) {
			loggers = append(loggers, loggerDoc{name, level})
		}
	}
	return loggers
}

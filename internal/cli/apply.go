package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint"
)

// findingDoc is one finding in JSON.
type findingDoc struct {
	Code    string `json:"code"`
	Level   string `json:"level"`
	Object  string `json:"object"`
	Path    string `json:"path"`
	File    string `json:"file"`
	Line    int32  `json:"line"`
	Message string `json:"message"`
	Fix     string `json:"fix"`
}

// applyDoc is what apply and analyze print with -o json.
type applyDoc struct {
	Findings []findingDoc `json:"findings"`
	Applied  bool         `json:"applied"`
	Objects  []appliedDoc `json:"objects"`
}

// appliedDoc is what became of one object.
type appliedDoc struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	Outcome    string `json:"outcome"` // created, configured, unchanged
	Version    int64  `json:"version"`
}

func newApply(g *Globals) *cobra.Command {
	var files []string
	var dryRun bool
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Apply configuration: all documents or, if one has an error, none",
		Long: `Applies the YAML or JSON documents of all files as one change: all of them or, if one has a finding of level error, none
(exit code 79). Warnings are printed and do not stop it. FILE may be a folder (its *.yaml, *.yml and *.json) or - for stdin.

What Kubernetes and Helm print is taken as it is: lists, what an API server adds to an object (it is not kept), and objects that
are not the mesh's affair, such as Deployments, which are left out with a warning.

A document with metadata.resourceVersion, as isthmus get -o yaml prints it, is applied only if the object has not been changed
since (else exit code 1, error code conflict). Without it a document replaces whatever there is.`,
		Example: "  isthmus --cluster west apply -f canary.yaml\n  cat canary.yaml | isthmus --cluster west apply -f -",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			request, err := g.applyRequest(files, dryRun)
			if err != nil {
				return err
			}
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.config.Apply(ctx, request)
				if err != nil {
					return err
				}
				return g.printApplied(response, dryRun)
			})
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "file or folder, - for stdin; may be repeated")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "check everything, change nothing")
	must(c.MarkFlagRequired("filename"))
	return c
}

func newAnalyze(g *Globals) *cobra.Command {
	return &cobra.Command{
		Use:   "analyze [FILE...]",
		Short: "Say what is wrong with configuration, without applying it",
		Long: `Checks files as apply would and changes nothing: against what the cluster has or, when none is named, alone. Without files it
checks what the cluster has, and what came along with the exports of others. Exit code 79 if a finding is of level error. What each
code means is in docs/reference/findings.md.`,
		Example: "  isthmus analyze canary.yaml\n  isthmus --cluster west analyze canary.yaml\n  isthmus --cluster west analyze",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return g.with(c.Context(), func(ctx context.Context, cp client) error {
					response, err := cp.config.Analyze(ctx, &admin.AnalyzeRequest{})
					if err != nil {
						return err
					}
					return g.printAnalyzed(docOfFindings(response.GetFindings()))
				})
			}
			request, err := g.applyRequest(args, true)
			if err != nil {
				return err
			}
			if _, nowhere := g.AdminSocket(); hint.CodeOf(nowhere) == exit.CodeUsage {
				g.Printer.Progressf("no cluster is named: the files are checked alone, not against what a cluster has")
				return g.printAnalyzed(g.analyzeAlone(request))
			}
			return g.with(c.Context(), func(ctx context.Context, cp client) error {
				response, err := cp.config.Apply(ctx, request)
				if err != nil {
					return err
				}
				return g.printAnalyzed(docOfApply(response).Findings)
			})
		},
	}
}

// analyzeAlone checks files without a control plane.
func (g *Globals) analyzeAlone(request *admin.ApplyRequest) []findingDoc {
	var files []config.File
	for _, f := range request.GetFiles() {
		files = append(files, config.File{Name: f.GetName(), Data: f.GetYaml()})
	}
	objects, findings := config.Decode(files, request.GetDefaultNamespace())
	docs := []findingDoc{}
	if g.config.Analyze != nil {
		findings = append(findings, g.config.Analyze(objects)...)
	}
	for _, f := range findings {
		docs = append(docs, findingDoc{Code: f.Code, Level: string(f.Level), Object: f.Object, Path: f.Path, File: f.File, Line: int32(f.Line), Message: f.Message, Fix: f.Fix})
	}
	return docs
}

// maxInput bounds the files of one apply, in bytes: a control plane takes requests of 8 MiB.
const maxInput = 7 << 20

// applyRequest reads all files before anything is sent.
func (g *Globals) applyRequest(paths []string, dryRun bool) (*admin.ApplyRequest, error) {
	request, total := &admin.ApplyRequest{DefaultNamespace: g.namespace(), DryRun: dryRun}, 0
	for _, path := range paths {
		files, err := expand(path)
		if err != nil {
			return nil, err
		}
		for _, name := range files {
			raw, err := g.read(name)
			if err != nil {
				return nil, err
			}
			if total += len(raw); total > maxInput {
				return nil, hint.Wrap(hint.Code(fmt.Errorf("the files have more than %d bytes together", maxInput), "too_large"), "apply them in several steps")
			}
			request.Files = append(request.Files, &admin.File{Name: name, Yaml: raw})
		}
	}
	return request, nil
}

func (g *Globals) read(name string) ([]byte, error) {
	if name == "-" {
		raw, err := readBounded(g.In)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return raw, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, hint.Code(fmt.Errorf("read configuration: %w", err), "unreadable_file")
	}
	defer file.Close()
	raw, err := readBounded(file)
	if err != nil {
		return nil, hint.Code(fmt.Errorf("read configuration: %w", err), "unreadable_file")
	}
	return raw, nil
}

// readBounded reads no more of a file than shows that it is too large: what reads it says so, and which other files are wrong.
func readBounded(r io.Reader) ([]byte, error) {
	return io.ReadAll(io.LimitReader(r, config.MaxBytes+1))
}

// expand lists the configuration files of a folder, sorted; anything else is itself.
func expand(path string) ([]string, error) {
	info, err := os.Stat(path)
	if path == "-" || err != nil || !info.IsDir() {
		return []string{path}, nil // reading it gives the better error
	}
	var files []string
	for _, pattern := range []string{"*.yaml", "*.yml", "*.json"} {
		found, err := filepath.Glob(filepath.Join(path, pattern))
		if err != nil {
			return nil, exit.Usagef("folder %s: %v", path, err)
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		return nil, hint.Wrap(hint.Code(fmt.Errorf("folder %s has no *.yaml, *.yml or *.json", path), "unreadable_file"), "name the file itself")
	}
	sort.Strings(files)
	return files, nil
}

func (g *Globals) printApplied(response *admin.ApplyResponse, dryRun bool) error {
	doc := docOfApply(response)
	names := make([]string, 0, len(doc.Objects))
	for _, object := range doc.Objects {
		names = append(names, resourceName(object.APIVersion, object.Kind, object.Name))
	}
	refused := errorsIn(doc.Findings)
	if !doc.Applied && refused == 0 && !dryRun {
		refused = 1 // the control plane refused without saying why: still not applied
	}
	err := g.Printer.Print(output.View{Doc: doc, Names: names, Text: func(p *output.Printer) {
		printFindings(p, p.Progressf, doc.Findings)
		if refused > 0 {
			return
		}
		for i, object := range doc.Objects {
			suffix := ""
			if dryRun {
				suffix = " (dry run)"
			}
			p.Printf("%s %s%s\n", names[i], object.Outcome, suffix)
		}
		if len(doc.Objects) == 0 {
			p.Progressf("nothing to apply: there is no configuration of the mesh in the files")
		}
	}})
	if err != nil || refused == 0 {
		return err
	}
	return refusal("nothing was applied: " + count(refused, "error"))
}

func (g *Globals) printAnalyzed(findings []findingDoc) error {
	var names []string
	for _, finding := range findings {
		names = append(names, finding.Code)
	}
	wrong := errorsIn(findings)
	err := g.Printer.Print(output.View{Doc: struct {
		Findings []findingDoc `json:"findings"`
	}{findings}, Names: names, Text: func(p *output.Printer) {
		printFindings(p, func(format string, args ...any) { p.Printf(format+"\n", args...) }, findings)
		if len(findings) == 0 {
			p.Progressf("no findings")
		}
	}})
	if err != nil || wrong == 0 {
		return err
	}
	return refusal(count(wrong, "error") + " found")
}

func docOfApply(response *admin.ApplyResponse) applyDoc {
	doc := applyDoc{Findings: docOfFindings(response.GetFindings()), Applied: response.GetApplied(), Objects: []appliedDoc{}}
	for i, o := range response.GetObjects() {
		outcome := ""
		if i < len(response.GetOutcomes()) {
			outcome = response.GetOutcomes()[i]
		}
		doc.Objects = append(doc.Objects, appliedDoc{o.GetApiVersion(), o.GetKind(), o.GetNamespace(), o.GetName(), outcome, o.GetVersion()})
	}
	return doc
}

func docOfFindings(findings []*admin.Finding) []findingDoc {
	out := make([]findingDoc, 0, len(findings))
	for _, f := range findings {
		out = append(out, findingDoc{Code: f.GetCode(), Level: f.GetLevel(), Object: f.GetObject(), Path: f.GetPath(),
			File: f.GetFile(), Line: f.GetLine(), Message: f.GetMessage(), Fix: f.GetFix()})
	}
	return out
}

// printFindings prints "file:line: level CODE Kind ns/name path: message" and the fix below it.
func printFindings(p *output.Printer, line func(string, ...any), findings []findingDoc) {
	colors := map[string]output.Color{"error": output.Red, "warning": output.Yellow}
	for _, f := range findings {
		where := f.File
		if f.Line > 0 {
			where = fmt.Sprintf("%s:%d", f.File, f.Line)
		}
		subject := strings.TrimSpace(f.Object + " " + f.Path)
		line("%s", strings.TrimLeft(fmt.Sprintf("%s: %s %s %s: %s", output.Clean(where), p.Paint(colors[f.Level], f.Level), f.Code, output.Clean(subject), output.Clean(f.Message)), ": "))
		if f.Fix != "" {
			line("    fix: %s", output.Clean(f.Fix))
		}
	}
}

func errorsIn(findings []findingDoc) int {
	n := 0
	for _, finding := range findings {
		if finding.Level == "error" {
			n++
		}
	}
	return n
}

// refusal is the error behind exit code 79.
func refusal(message string) error {
	return hint.Wrap(hint.Code(errors.New(message), exit.CodeFindings), "each finding says where and how; correct the file and try again, nothing was changed")
}

// count writes "1 error", "2 errors".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

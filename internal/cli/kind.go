package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/config"
)

// kind is a kind of object as `get` shows it.
type kind struct {
	name       string // "VirtualService"
	apiVersion string // of an empty list
	shown
}

// shown is what is shown of a kind in columns of its own.
type shown struct {
	columns []string
	// cells are the values of columns, from an object.
	cells func(object map[string]any) []string
}

// columns by the name of a kind.
var columns = map[string]shown{
	config.KindService: {columns: []string{"PORTS", "SELECTOR"}, cells: func(o map[string]any) []string {
		var ports []string
		for _, port := range list(o, "spec", "ports") {
			ports = append(ports, strings.Trim(text(port, "name")+":"+text(port, "port"), ":"))
		}
		return []string{strings.Join(ports, ","), pairs(o, "spec", "selector")}
	}},
	config.KindServiceExport: {columns: []string{"TO"}, cells: func(o map[string]any) []string {
		to := text(o, "metadata", "annotations", config.AnnotationExportTo)
		if to == "" {
			to = "all"
		}
		return []string{to}
	}},
	config.KindVirtualService: {columns: []string{"HOSTS"}, cells: func(o map[string]any) []string {
		return []string{texts(list(o, "spec", "hosts"))}
	}},
	config.KindDestinationRule: {columns: []string{"HOST", "SUBSETS"}, cells: func(o map[string]any) []string {
		var subsets []string
		for _, subset := range list(o, "spec", "subsets") {
			subsets = append(subsets, text(subset, "name"))
		}
		return []string{text(o, "spec", "host"), strings.Join(subsets, ",")}
	}},
	config.KindWorkloadEntry: {columns: []string{"ADDRESS", "LOCALITY", "ACCOUNT"}, cells: func(o map[string]any) []string {
		return []string{text(o, "spec", "address"), text(o, "spec", "locality"), text(o, "spec", "serviceAccount")}
	}},
}

// kindNamed finds what a person called name. An unknown one is passed on as typed, without columns: the control plane
// may know it, or says that it does not.
func kindNamed(name string) kind {
	known, ok := config.KindNamed(name)
	if !ok {
		return kind{name: name, apiVersion: "v1"}
	}
	return kind{name: known.Name, apiVersion: known.APIVersion(), shown: columns[known.Name]}
}

// completeKinds offers the kinds for the first argument.
func completeKinds(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, k := range config.Kinds() {
		if len(args) == 0 {
			names = append(names, strings.ToLower(k.Name))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

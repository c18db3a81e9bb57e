package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// kind is a kind of object that `get` shows in columns of its own.
type kind struct {
	name       string // "VirtualService"
	apiVersion string // of an empty list
	short      string // as kubectl abbreviates it
	columns    []string
	// cells are the values of columns, from an object.
	cells func(object map[string]any) []string
}

// kinds are the kinds the registry knows. The control plane decides what a name means; this list gives short names,
// columns and completion.
var kinds = []kind{
	{name: "Service", apiVersion: "v1", short: "svc", columns: []string{"PORTS", "SELECTOR"}, cells: func(o map[string]any) []string {
		var ports []string
		for _, port := range list(o, "spec", "ports") {
			ports = append(ports, strings.Trim(text(port, "name")+":"+text(port, "port"), ":"))
		}
		return []string{strings.Join(ports, ","), pairs(o, "spec", "selector")}
	}},
	{name: "ServiceExport", apiVersion: "multicluster.x-k8s.io/v1beta1", short: "svcex", columns: []string{"TO"}, cells: func(o map[string]any) []string {
		to := text(o, "metadata", "annotations", "isthmus.dev/export-to")
		if to == "" {
			to = "all"
		}
		return []string{to}
	}},
	{name: "VirtualService", apiVersion: "networking.istio.io/v1", short: "vs", columns: []string{"HOSTS"}, cells: func(o map[string]any) []string {
		return []string{texts(list(o, "spec", "hosts"))}
	}},
	{name: "DestinationRule", apiVersion: "networking.istio.io/v1", short: "dr", columns: []string{"HOST", "SUBSETS"}, cells: func(o map[string]any) []string {
		var subsets []string
		for _, subset := range list(o, "spec", "subsets") {
			subsets = append(subsets, text(subset, "name"))
		}
		return []string{text(o, "spec", "host"), strings.Join(subsets, ",")}
	}},
	{name: "WorkloadEntry", apiVersion: "networking.istio.io/v1", short: "we", columns: []string{"ADDRESS", "LOCALITY", "ACCOUNT"}, cells: func(o map[string]any) []string {
		return []string{text(o, "spec", "address"), text(o, "spec", "locality"), text(o, "spec", "serviceAccount")}
	}},
}

// kindNamed finds what a person called name: any case, singular, plural or short. An unknown one is passed on as typed,
// without columns.
func kindNamed(name string) kind {
	lower := strings.ToLower(name)
	for _, k := range kinds {
		if known := strings.ToLower(k.name); lower == known || lower == known+"s" || lower == k.short {
			return k
		}
	}
	return kind{name: name, apiVersion: "v1"}
}

// completeKinds offers the kinds for the first argument.
func completeKinds(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, k := range kinds {
		if len(args) == 0 {
			names = append(names, strings.ToLower(k.name))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

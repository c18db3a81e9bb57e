package config

import (
	"slices"
	"strings"
)

// The kinds of objects.
const (
	KindService         = "Service"
	KindServiceExport   = "ServiceExport"
	KindVirtualService  = "VirtualService"
	KindDestinationRule = "DestinationRule"
	KindWorkloadEntry   = "WorkloadEntry"
)

// Kind is a kind of object that this version acts on.
type Kind struct {
	Name  string // "VirtualService"
	Short string // as kubectl abbreviates it: "vs"
	Group string // of its API; empty for Kubernetes' own
	// Versions of its API that are read. Objects made here are of the first.
	Versions []string
}

var istioVersions = []string{"v1", "v1beta1", "v1alpha3"}

// Kinds lists the kinds in the order in which people read them. It is the one list of them; what a kind's fields are is
// beside it in this package (kinds), what it shows in columns is the command line's.
func Kinds() []Kind {
	return []Kind{
		{Name: KindService, Short: "svc", Versions: []string{"v1"}},
		{Name: KindServiceExport, Short: "svcex", Group: "multicluster.x-k8s.io", Versions: []string{"v1beta1", "v1alpha1"}},
		{Name: KindVirtualService, Short: "vs", Group: "networking.istio.io", Versions: istioVersions},
		{Name: KindDestinationRule, Short: "dr", Group: "networking.istio.io", Versions: istioVersions},
		{Name: KindWorkloadEntry, Short: "we", Group: "networking.istio.io", Versions: istioVersions},
	}
}

// APIVersion is what objects of the kind that are made here have.
func (k Kind) APIVersion() string { return strings.TrimPrefix(k.Group+"/"+k.Versions[0], "/") }

// KindNamed finds the kind that a person means: any case, singular, plural or short.
func KindNamed(typed string) (Kind, bool) {
	all, typed := Kinds(), strings.ToLower(typed)
	at := slices.IndexFunc(all, func(k Kind) bool {
		name := strings.ToLower(k.Name)
		if stem, ok := strings.CutSuffix(name, "y"); ok && typed == stem+"ies" {
			return true
		}
		return typed == name || typed == name+"s" || typed == k.Short
	})
	if at < 0 {
		return Kind{}, false
	}
	return all[at], true
}

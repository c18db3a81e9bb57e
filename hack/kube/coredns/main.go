// Command coredns is CoreDNS with the plugins a cluster here needs and no others; the full list costs twice the
// build time and memory. `kubernetes` carries the multicluster zone (clusterset.local).
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/template"
)

// plugins fixes the order in which a query passes them, which is upstream's order.
var plugins = []string{
	"reload", "health", "ready", "prometheus", "errors", "log", "cache", "rewrite", "template", "hosts", "kubernetes",
	"loop", "forward",
}

func main() {
	dnsserver.Directives = plugins
	coremain.Run()
}

package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"isthmus.dev/isthmus/internal/cli/output"
)

func clusterTable(p *output.Printer, d *dump, _ time.Time) {
	grid := output.NewGrid("HOST", "PORT", "SUBSET", "DIRECTION", "TYPE", "STATE")
	for _, it := range d.items("clusters") {
		c, kind := parseCluster(it.name), text(it.body, "type")
		if kind == "" {
			kind = text(it.body, "cluster_type", "name")
		}
		if kind == "" {
			kind = "STATIC" // Envoy's default, which it leaves out
		}
		grid.Cells(output.Cell{Text: c.host}, output.Cell{Text: c.port}, output.Cell{Text: c.subset}, output.Cell{Text: c.direction}, output.Cell{Text: kind}, stateCell(it.state))
	}
	grid.Print(p, "no clusters")
}

// stateCell shows what is not in use as it should be.
func stateCell(state string) output.Cell {
	switch state {
	case "warming", "draining":
		return output.Cell{Text: state, Color: output.Yellow}
	case "refused":
		return output.Cell{Text: state, Color: output.Red}
	}
	return output.Cell{Text: state}
}

func listenerTable(p *output.Printer, d *dump, _ time.Time) {
	grid := output.NewGrid("NAME", "ADDRESS", "PORT", "MATCH", "DESTINATION", "STATE")
	for _, it := range d.items("listeners") {
		host, port := addressOf(field(it.body, "address"))
		if host == "" && field(it.body, "internal_listener") != nil {
			host = "internal"
		}
		row := func(match, destination string) {
			grid.Cells(output.Cell{Text: it.name}, output.Cell{Text: host}, output.Cell{Text: port}, output.Cell{Text: match}, output.Cell{Text: destination}, stateCell(it.state))
		}
		chains, otherwise := list(it.body, "filter_chains"), field(it.body, "default_filter_chain")
		for _, chain := range chains {
			row(chainMatch(field(chain, "filter_chain_match")), chainDestination(chain))
		}
		switch {
		case otherwise != nil && len(chains) > 0:
			row("otherwise", chainDestination(otherwise))
		case otherwise != nil:
			row("all", chainDestination(otherwise))
		case len(chains) == 0:
			row("", "")
		}
	}
	grid.Print(p, "no listeners")
}

// chainMatch is what a filter chain takes.
func chainMatch(match any) string {
	var all []string
	add := func(what, value string) {
		if value != "" {
			all = append(all, what+value)
		}
	}
	var ranges []string
	for _, r := range list(match, "prefix_ranges") {
		ranges = append(ranges, text(r, "address_prefix")+"/"+text(r, "prefix_len"))
	}
	add("to ", strings.Join(ranges, ","))
	add("port ", text(match, "destination_port"))
	add("", text(match, "transport_protocol"))
	add("server name ", shorten(texts(list(match, "server_names"))))
	add("ALPN ", texts(list(match, "application_protocols")))
	if len(all) == 0 {
		return "all"
	}
	return strings.Join(all, "; ")
}

// chainDestination is where a filter chain sends what it takes.
func chainDestination(chain any) string {
	var bySNI bool
	for _, filter := range list(chain, "filters") {
		config := field(filter, "typed_config")
		switch kind := text(config, "@type"); {
		case strings.HasSuffix(kind, ".SniCluster"):
			bySNI = true
		case strings.HasSuffix(kind, ".HttpConnectionManager"):
			if name := text(config, "rds", "route_config_name"); name != "" {
				return "route " + name
			}
			return inlineRoute(field(config, "route_config"))
		case strings.HasSuffix(kind, ".TcpProxy"):
			if bySNI {
				return "cluster of the server name"
			}
			return "cluster " + targets(config)
		}
	}
	if filters := list(chain, "filters"); len(filters) > 0 {
		return text(filters[len(filters)-1], "name")
	}
	return ""
}

// inlineRoute shows a route configuration that is a part of its listener by where it leads.
func inlineRoute(config any) string {
	var all []string
	for _, host := range list(config, "virtual_hosts") {
		for _, route := range list(host, "routes") {
			if to := routeTarget(route); !slices.Contains(all, to) {
				all = append(all, to)
			}
		}
	}
	return shorten(strings.Join(all, ","))
}

// targets are the clusters of a TCP proxy or of a route's action.
func targets(action any) string {
	if cluster := text(action, "cluster"); cluster != "" {
		return cluster
	}
	var all []string
	for _, c := range list(action, "weighted_clusters", "clusters") {
		all = append(all, text(c, "name")+" "+text(c, "weight"))
	}
	return strings.Join(all, ", ")
}

func routeTable(p *output.Printer, d *dump, _ time.Time) {
	grid := output.NewGrid("NAME", "VIRTUAL HOST", "DOMAINS", "MATCH", "CLUSTER")
	for _, it := range d.items("routes") {
		for _, host := range list(it.body, "virtual_hosts") {
			for _, route := range list(host, "routes") {
				grid.Row(it.name, text(host, "name"), shorten(texts(list(host, "domains"))), routeMatch(field(route, "match")), routeTarget(route))
			}
			if len(list(host, "routes")) == 0 {
				grid.Row(it.name, text(host, "name"), shorten(texts(list(host, "domains"))), "", "")
			}
		}
	}
	grid.Print(p, "no routes")
}

// routeMatch is which requests a route takes: the path first, a prefix with a star, then what else is looked at.
func routeMatch(match any) string {
	path := ""
	switch {
	case text(match, "prefix") != "":
		path = text(match, "prefix") + "*"
	case text(match, "path") != "":
		path = text(match, "path")
	case text(match, "path_separated_prefix") != "":
		path = text(match, "path_separated_prefix") + "[/*]"
	case field(match, "safe_regex") != nil:
		path = "regex " + text(match, "safe_regex", "regex")
	}
	var also []string
	for _, key := range []string{"headers", "query_parameters"} {
		for _, m := range list(match, key) {
			also = append(also, strings.TrimSuffix(strings.ReplaceAll(key, "_", " "), "s")+" "+text(m, "name"))
		}
	}
	return strings.TrimSpace(path + " " + strings.Join(also, ", "))
}

// routeTarget is what becomes of a request.
func routeTarget(route any) string {
	switch {
	case field(route, "redirect") != nil:
		return "redirect"
	case field(route, "direct_response") != nil:
		return "answer " + text(route, "direct_response", "status")
	case text(route, "route", "cluster_header") != "":
		return "header " + text(route, "route", "cluster_header")
	}
	return targets(field(route, "route"))
}

func endpointTable(p *output.Printer, d *dump, _ time.Time) {
	grid := output.NewGrid("ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER", "ZONE", "PRIORITY", "WEIGHT")
	hosts := slices.Clone(d.Hosts)
	slices.SortStableFunc(hosts, func(a, b map[string]any) int { return strings.Compare(text(a, "name"), text(b, "name")) })
	for _, cluster := range hosts {
		for _, host := range list(cluster, "host_statuses") {
			address, port := addressOf(field(host, "address"))
			if port != "" {
				address += ":" + port
			}
			zone := text(host, "locality", "region")
			if z := text(host, "locality", "zone"); z != "" {
				zone += "/" + z
			}
			priority := text(host, "priority")
			if priority == "" {
				priority = "0" // Envoy leaves it out
			}
			status, outlier := healthCells(field(host, "health_status"))
			grid.Cells(output.Cell{Text: address}, status, outlier, output.Cell{Text: text(cluster, "name")}, output.Cell{Text: zone}, output.Cell{Text: priority}, output.Cell{Text: text(host, "weight")})
		}
	}
	grid.Print(p, "no endpoints")
}

// healthCells are what Envoy was told or has found out of an endpoint, and whether it has ejected it for its errors.
func healthCells(health any) (status, outlier output.Cell) {
	status = output.Cell{Text: text(health, "eds_health_status"), Color: output.Green}
	switch {
	case text(health, "failed_active_health_check") == "true" || text(health, "failed_active_degraded_check") == "true":
		status = output.Cell{Text: "UNHEALTHY", Color: output.Red}
	case status.Text == "":
		status.Text = "HEALTHY" // told nothing, it takes it for that
	case status.Text != "HEALTHY":
		status.Color = output.Yellow
	}
	outlier = output.Cell{Text: "OK", Color: output.Green}
	if text(health, "failed_outlier_check") == "true" {
		outlier = output.Cell{Text: "EJECTED", Color: output.Red}
	}
	return status, outlier
}

func bootstrapTable(p *output.Printer, d *dump, _ time.Time) {
	grid := output.NewGrid("WHAT", "VALUE")
	for _, config := range d.Configs {
		b := field(config, "bootstrap")
		if b == nil {
			continue
		}
		version := field(b, "node", "user_agent_build_version", "version")
		admin, port := addressOf(field(b, "admin", "address"))
		if port != "" {
			admin += ":" + port
		}
		for _, row := range [][2]string{
			{"node", text(b, "node", "id")},
			{"cluster", text(b, "node", "cluster")},
			{"zone", text(b, "node", "locality", "zone")},
			{"version", versionOf(version)},
			{"admin", admin},
			{"clusters", named(list(b, "static_resources", "clusters"))},
			{"listeners", named(list(b, "static_resources", "listeners"))},
			{"last updated", text(config, "last_updated")},
		} {
			grid.Row(row[0], row[1])
		}
	}
	grid.Print(p, "no bootstrap")
}

// versionOf is a semantic version of Envoy's, which leaves zeros out.
func versionOf(v any) string {
	number := func(key string) string {
		if n := text(v, key); n != "" {
			return n
		}
		return "0"
	}
	if v == nil {
		return ""
	}
	return fmt.Sprintf("%s.%s.%s", number("major_number"), number("minor_number"), number("patch"))
}

func named(resources []any) string {
	var all []string
	for _, r := range resources {
		all = append(all, text(r, "name"))
	}
	return strings.Join(all, ",")
}

// longestCell is how much of a list a cell of a table shows, in bytes; -o json has all of it.
const longestCell = 80

// shorten cuts a list "a,b,c" after the entry that fits last, and says how many follow.
func shorten(list string) string {
	if len(list) <= longestCell {
		return list
	}
	end := strings.LastIndexByte(list[:longestCell], ',')
	if end < 0 {
		return list // one long entry
	}
	return fmt.Sprintf("%s + %d more", list[:end], strings.Count(list[end:], ","))
}

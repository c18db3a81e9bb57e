package cli

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint/wire"
)

// maxPage bounds a page of an Envoy, in bytes: an agent gives 64 MiB at most, and it may be an agent of somebody else's.
const maxPage = 64 << 20

// inspect asks a proxy for a page of its Envoy.
func (c client) inspect(ctx context.Context, r *admin.InspectProxyRequest) ([]byte, error) {
	stream, err := c.mesh.InspectProxy(ctx, r)
	if err != nil {
		return nil, wire.Error(err)
	}
	var zipped bytes.Buffer
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, wire.Error(err)
		}
		if zipped.Write(part.GetGzip()); zipped.Len() > maxPage {
			return nil, fmt.Errorf("the answer of %s.%s has more than %d MiB", r.GetName(), r.GetNamespace(), maxPage>>20)
		}
	}
	page, err := unzip(&zipped)
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s.%s: %w", r.GetName(), r.GetNamespace(), err)
	}
	return page, nil
}

func unzip(r io.Reader) ([]byte, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	page, err := io.ReadAll(io.LimitReader(z, maxPage+1))
	if err == nil && len(page) > maxPage {
		err = fmt.Errorf("it has more than %d MiB", maxPage>>20)
	}
	return page, err
}

// dump is what an Envoy says of its configuration, in its own words.
type dump struct {
	// Configs are of Envoy's page /config_dump: one for each kind.
	Configs []map[string]any `json:"configs"`
	// Hosts are of its page /clusters: the endpoints as it finds them, by cluster.
	Hosts []map[string]any `json:"cluster_statuses,omitempty"`
}

// dump adds a page to d.
func (c client) dump(ctx context.Context, namespace, name, subject string, d *dump) error {
	page, err := c.inspect(ctx, &admin.InspectProxyRequest{Namespace: namespace, Name: name, Subject: subject})
	if err != nil {
		return err
	}
	if err := decodeJSON(page, d); err != nil {
		return fmt.Errorf("read the answer of %s.%s about %s: %w", name, namespace, subject, err)
	}
	return nil
}

// itemLists are the lists in a dump of each kind, with the state of what is in them.
var itemLists = []struct{ kind, list, state string }{
	{"clusters", "static_clusters", "static"}, {"clusters", "dynamic_active_clusters", "active"}, {"clusters", "dynamic_warming_clusters", "warming"},
	{"listeners", "static_listeners", "static"}, {"listeners", "dynamic_listeners", "active"},
	{"routes", "static_route_configs", "static"}, {"routes", "dynamic_route_configs", "active"},
	{"endpoints", "static_endpoint_configs", "static"}, {"endpoints", "dynamic_endpoint_configs", "active"},
	{"secrets", "static_secrets", "static"}, {"secrets", "dynamic_active_secrets", "active"}, {"secrets", "dynamic_warming_secrets", "warming"},
}

// item is one resource in a dump.
type item struct {
	kind, name, state string
	body              map[string]any // the resource itself; nil where Envoy has refused it
}

// items lists the resources of a kind, by name.
func (d *dump) items(kind string) []item {
	var all []item
	for _, config := range d.Configs {
		for _, l := range itemLists {
			if l.kind != kind {
				continue
			}
			for _, entry := range list(config, l.list) {
				all = append(all, itemOf(kind, l.state, entry))
			}
		}
	}
	slices.SortStableFunc(all, func(a, b item) int { return strings.Compare(a.name, b.name) })
	return all
}

// itemOf reads one entry of a list.
func itemOf(kind, state string, entry any) item {
	it := item{kind: kind, state: state}
	paths := map[string][][]string{
		"clusters": {{"cluster"}}, "routes": {{"route_config"}}, "endpoints": {{"endpoint_config"}}, "secrets": {{"secret"}},
		"listeners": {{"listener"}, {"active_state", "listener"}, {"warming_state", "listener"}, {"draining_state", "listener"}},
	}
	for _, path := range paths[kind] {
		if body, ok := field(entry, path...).(map[string]any); ok {
			it.body = body
			if at, _, found := strings.Cut(path[0], "_state"); found {
				it.state = at
			}
			break
		}
	}
	if kind == "listeners" && it.body == nil {
		it.state = "refused"
	}
	for _, name := range []string{text(it.body, "name"), text(it.body, "cluster_name"), text(entry, "name")} {
		if name != "" {
			it.name = name
			break
		}
	}
	return it
}

// narrow chooses among resources; zero fields choose all.
type narrow struct {
	name, fqdn string
	port       int
}

// admits tells whether a resource is chosen. Of a cluster, and of the endpoints of one, host and port are in its name.
func (n narrow) admits(it item) bool {
	if n.name != "" && n.name != it.name {
		return false
	}
	c := parseCluster(it.name)
	port := c.port
	if it.kind == "listeners" {
		_, port = addressOf(field(it.body, "address"))
	}
	if n.port != 0 && strconv.Itoa(n.port) != port {
		return false
	}
	return n.fqdn == "" || c.host == n.fqdn || strings.HasPrefix(c.host, n.fqdn+".")
}

// narrow leaves out what is not chosen.
func (d *dump) narrow(n narrow) {
	if n == (narrow{}) {
		return
	}
	for _, config := range d.Configs {
		for _, l := range itemLists {
			if entries, ok := config[l.list].([]any); ok {
				config[l.list] = slices.DeleteFunc(entries, func(entry any) bool { return !n.admits(itemOf(l.kind, l.state, entry)) })
			}
		}
	}
	d.Hosts = slices.DeleteFunc(d.Hosts, func(host map[string]any) bool {
		return !n.admits(item{kind: "hosts", name: text(host, "name")})
	})
}

// names are the resources as -o name prints them.
func (d *dump) names() []string {
	var all []string
	for i, l := range itemLists {
		if i > 0 && itemLists[i-1].kind == l.kind {
			continue
		}
		for _, it := range d.items(l.kind) {
			name := output.Clean(strings.ReplaceAll(it.name, "\n", "?"))
			all = append(all, strings.TrimSuffix(l.kind, "s")+"/"+name)
		}
	}
	return all
}

// clusterName is the name of an Envoy cluster in its parts: DIRECTION|PORT|SUBSET|HOST at a sidecar, a server name of
// mesh.SlotSNI at a gateway, whose direction is the slot. Any other name is a host.
type clusterName struct{ direction, port, subset, host string }

func parseCluster(name string) clusterName {
	if parts := strings.Split(name, "|"); len(parts) == 4 {
		return clusterName{parts[0], parts[1], parts[2], parts[3]}
	}
	if slot, rest, ok := strings.Cut(name, ".outbound_."); ok && strings.HasPrefix(slot, "s") {
		if parts := strings.SplitN(rest, "_.", 3); len(parts) == 3 {
			return clusterName{"slot " + slot[1:], parts[0], parts[1], parts[2]}
		}
	}
	return clusterName{host: name}
}

// addressOf reads an address of Envoy's: of a socket, a pipe, or a listener in Envoy itself.
func addressOf(address any) (host, port string) {
	if socket := field(address, "socket_address"); socket != nil {
		return text(socket, "address"), text(socket, "port_value")
	}
	if path := text(address, "pipe", "path"); path != "" {
		return path, ""
	}
	if name := text(address, "envoy_internal_address", "server_listener_name"); name != "" {
		if id := text(address, "envoy_internal_address", "endpoint_id"); id != "" {
			name += " " + id
		}
		return name, ""
	}
	return "", ""
}

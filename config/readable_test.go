package config

import (
	"encoding/json"
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/rule"
)

// readable shows a compiled rule, its fragments decoded.
func readable(o *rule.Object) map[string]any {
	out := map[string]any{"object": o.Name.String()}
	if t := o.Traffic; t != nil {
		out["hosts"] = t.Hosts
		var http, tcp []any
		for i := range t.HTTP {
			r := &t.HTTP[i]
			one := map[string]any{"at": r.Path, "name": r.Name, "targets": targets(r.Targets), "action": decoded(r.Other, &routev3.RouteAction{})}
			if r.Idempotent != nil {
				one["idempotent"] = decoded(r.Idempotent, &routev3.RouteAction{})
			}
			var matches []any
			for j := range r.Matches {
				m := &r.Matches[j]
				match := map[string]any{"at": m.Path, "route": decoded(m.Route, &routev3.RouteMatch{})}
				if m.Port != 0 {
					match["port"] = m.Port
				}
				if m.Always {
					match["always"] = true
				}
				matches = append(matches, match)
			}
			one["matches"] = matches
			http = append(http, one)
		}
		for i := range t.TCP {
			tcp = append(tcp, map[string]any{"at": t.TCP[i].Path, "port": t.TCP[i].Port, "targets": targets(t.TCP[i].Targets)})
		}
		out["http"], out["tcp"] = http, tcp
	}
	if p := o.Policy; p != nil {
		out["host"], out["settings"] = p.Host, settings(p.Settings)
		var subsets []any
		for i := range p.Subsets {
			s := &p.Subsets[i]
			subsets = append(subsets, map[string]any{"at": s.Path, "name": s.Name, "labels": s.Labels, "settings": settings(s.Settings)})
		}
		out["subsets"] = subsets
	}
	return out
}

func targets(all []rule.Target) []string {
	var out []string
	for i := range all {
		t := &all[i]
		out = append(out, fmt.Sprintf("%s subset=%q port=%d weight=%d at %s", t.Host, t.Subset, t.Port, t.Weight, t.Path))
	}
	return out
}

func settings(s rule.Settings) map[string]any {
	out := map[string]any{}
	for name, part := range map[string]*rule.Part{"pool": s.Pool, "ejection": s.Ejection} {
		if part != nil {
			out[name] = map[string]any{"at": part.Path, "http": decoded(part.HTTP, &clusterv3.Cluster{}), "tcp": decoded(part.TCP, &clusterv3.Cluster{})}
		}
	}
	if s.Locality != nil {
		out["locality"] = map[string]any{"at": s.Locality.Path, "disabled": s.Locality.Disabled, "failover": s.Locality.Failover}
	}
	return out
}

// decoded is a fragment as JSON, so that its spelling is the encoder's of this test alone.
func decoded(f rule.Fragment, into proto.Message) any {
	if err := proto.Unmarshal(f, into); err != nil {
		panic(err)
	}
	raw, err := protojson.Marshal(into)
	var out any
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		panic(err)
	}
	return out
}

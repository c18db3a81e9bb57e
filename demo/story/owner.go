package story

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"isthmus.dev/isthmus/demo/story/meter"
	"isthmus.dev/isthmus/demo/topology"
)

// learnLimit bounds the question to a control plane, which may be dead or frozen.
const learnLimit = time.Second

// learnTries is how often it is asked about one proxy: who is registered late is known the second time.
const learnTries = 5

// owners knows of which service each sidecar's application is: for the demo's own by its topology, for others by what
// is registered.
type owners struct {
	commands commands
	tried    map[meter.Proxy]int // owned by learn

	mu    sync.Mutex
	known map[meter.Proxy]meter.Service // guarded by mu
}

func newOwners(t topology.Topology, c commands) *owners {
	o := &owners{commands: c, tried: map[meter.Proxy]int{}, known: map[meter.Proxy]meter.Service{}}
	for _, cluster := range t.Clusters {
		for _, i := range cluster.Instances {
			o.known[meter.Proxy{Cluster: cluster.Name, Instance: i.Name}] = meter.Service{Namespace: topology.Namespace, Name: i.Service.Name}
		}
	}
	return o
}

// of is a meter.Owner.
func (o *owners) of(p meter.Proxy) (meter.Service, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s, known := o.known[p]
	return s, known && s.Name != ""
}

// learn asks about sidecars that nobody told of.
func (o *owners) learn(ctx context.Context, samples map[meter.Proxy]meter.Sample) {
	ask := map[string]bool{}
	o.mu.Lock()
	for p := range samples {
		if _, known := o.known[p]; !known && o.tried[p] < learnTries {
			o.tried[p]++
			ask[p.Cluster] = true
		}
	}
	o.mu.Unlock()
	for cluster := range ask {
		limited, cancel := context.WithTimeout(ctx, learnLimit)
		raw, err := o.commands.run(limited, "", "--cluster", cluster, "get", "workloadentry", "-A", "-o", "json")
		cancel()
		if err == nil {
			o.note(cluster, raw)
		}
	}
}

// note takes what is registered. Who is not is asked about again.
func (o *owners) note(cluster string, raw []byte) {
	var list struct {
		Items []struct {
			Metadata struct{ Name, Namespace string } `json:"metadata"`
			Spec     struct {
				Labels map[string]string `json:"labels"`
			} `json:"spec"`
		} `json:"items"`
	}
	if json.Unmarshal(raw, &list) != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, item := range list.Items {
		p := meter.Proxy{Cluster: cluster, Instance: item.Metadata.Name}
		if _, known := o.known[p]; !known {
			o.known[p] = meter.Service{Namespace: item.Metadata.Namespace, Name: item.Spec.Labels["app"]}
		}
	}
}

package checks

import (
	"strings"
	"testing"
)

// envoyConfig is a static configuration: port 10000 leads to the echo server of the same pod.
const envoyConfig = `
static_resources:
  listeners:
  - address: {socket_address: {address: 0.0.0.0, port_value: 10000}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: echo}}]}]}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
  clusters:
  - name: echo
    load_assignment: {cluster_name: echo, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8080}}}}]}]}
`

// The image of the product's agent holds a real Envoy that serves in a pod, and an agent that runs.
func TestProxyImage(t *testing.T) {
	c := clusters[0]
	ns := c.namespace(t)
	c.apply(t, ns, toolbox+`---
apiVersion: v1
kind: ConfigMap
metadata: {name: envoy, namespace: NS}
data: {envoy.yaml: ENVOY_CONFIG}
---
apiVersion: v1
kind: Pod
metadata: {name: proxied, namespace: NS}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: proxy
    image: isthmus.local/proxy:1
    command: [/usr/bin/envoy, -c, /etc/envoy/envoy.yaml, --concurrency, "1"]
    readinessProbe: {httpGet: {path: /, port: 10000}, periodSeconds: 1}
    volumeMounts: [{name: envoy, mountPath: /etc/envoy}]
  - {name: echo, image: "isthmus.local/echo:1"}
  volumes: [{name: envoy, configMap: {name: envoy}}]
`, "ENVOY_CONFIG", quote(t, envoyConfig))
	c.ready(t, ns, "tools")
	p := c.ready(t, ns, "proxied")
	out := c.shell(t, ns, "tools", "curl -sSf -m 3 http://"+p.Status.PodIP+":10000/", `"pod":"proxied"`)
	if !strings.Contains(out, "X-Envoy-Expected-Rq-Timeout-Ms") {
		t.Errorf("the answer %s did not come through Envoy", out)
	}
	if out, err := c.exec(t, spdyStreams, ns, "proxied/proxy", "", "/usr/bin/isthmus-proxy", "--version"); err != nil || !strings.HasPrefix(out, "isthmus-proxy version ") {
		t.Errorf("the agent says %q, %v", out, err)
	}
}

package node

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Config is all that the init program of a node is told.
type Config struct {
	Name        string       `json:"name"`
	State       string       `json:"state"`   // folder of this node on the host; its disk
	Bin         string       `json:"bin"`     // folder with the programs, see package bins
	Images      []string     `json:"images"`  // archives that the node has from the start
	Cgroup      string       `json:"cgroup"`  // of the lab
	Address     netip.Addr   `json:"address"` // in the cluster
	Pods        netip.Prefix `json:"pods"`    // of this node
	ClusterPods netip.Prefix `json:"clusterPods"`
	DNS         netip.Addr   `json:"dns"`
	API         string       `json:"api"` // host:port of the API server
	// LowersScores is false where the machine's root may not lower a process' OOM score (no CAP_SYS_RESOURCE).
	LowersScores bool   `json:"lowersScores"`
	Snapshotter  string `json:"snapshotter"` // of containerd; overlayfs, or native where the disk is itself an overlay
	// Patience is how long the node waits for its own programs and the API server before it gives up.
	Patience time.Duration `json:"patience"`
}

// Where things are inside a node. The host's own folders of these names are covered, never written.
const (
	diskDir   = "/run/node"
	binDir    = "/run/bin"
	socket    = "/run/containerd/containerd.sock"
	LinkIface = "link0" // interface on the shared link
	LANIface  = "eth0"  // interface in the cluster's own network
)

// files returns what the programs of the node read, by path below diskDir.
func (c Config) files() map[string]string {
	return map[string]string{
		"etc/containerd.toml":      c.containerd(),
		"etc/kubelet.yaml":         c.kubelet(),
		"etc/proxy.yaml":           c.proxy(),
		"etc/cni/10-pods.conflist": c.cni(),
		"etc/link.nft":             c.masquerade(),
		"etc/resolv.conf":          "# the cluster's network has no way out\n",
	}
}

func (c Config) containerd() string {
	return fmt.Sprintf(`version = 3
root = "%[1]s/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.differ.v1.erofs",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]

[grpc]
address = "%[2]s"

[plugins.'io.containerd.cri.v1.images']
snapshotter = "%[3]s"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "isthmus.local/pause:1"

[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = %[4]t
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["%[5]s/cni"]
conf_dir = "%[1]s/etc/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "runc"
SystemdCgroup = false
`, diskDir, socket, c.Snapshotter, !c.LowersScores, binDir)
}

// kubelet works on cgroup v1 too, which upstream has to be asked for. Figures that differ from upstream's defaults make
// a lost node known in half a minute and keep a nearly full disk of the host from evicting pods.
func (c Config) kubelet() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %[1]s
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %[2]s/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: %[2]s/pki/kubelet.crt
tlsPrivateKeyFile: %[2]s/pki/kubelet.key
clusterDNS: [%[3]s]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://%[4]s
cgroupDriver: cgroupfs
cgroupRoot: %[5]s
cgroupsPerQOS: true
failCgroupV1: false
failSwapOn: false
resolvConf: %[2]s/etc/resolv.conf
podLogsDir: %[2]s/log/pods
evictionHard: {memory.available: 20Mi, nodefs.available: "1%%", nodefs.inodesFree: "1%%", imagefs.available: "1%%"}
imageGCHighThresholdPercent: 100
serializeImagePulls: false
nodeStatusUpdateFrequency: 5s
nodeLeaseDurationSeconds: 20
shutdownGracePeriod: 0s
oomScoreAdj: %[6]d
maxPods: 110
kubeAPIQPS: 100
kubeAPIBurst: 200
`, c.Address, diskDir, c.DNS, socket, c.Cgroup+"/"+c.Name, c.score())
}

// score is the kubelet's own OOM score; 0 asks for no change.
func (c Config) score() int {
	if c.LowersScores {
		return -999
	}
	return 0
}

// proxy leaves the connection tracker's limits alone: they belong to the machine. NodePorts answer on every address
// of the node, the one on the link among them; upstream's nftables mode defaults to the primary one.
func (c Config) proxy() string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: %[1]s
hostnameOverride: %[2]s
nodePortAddresses: [0.0.0.0/0]
oomScoreAdj: 0
clientConnection: {kubeconfig: %[3]s/pki/proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {minSyncPeriod: 50ms, syncPeriod: 30s}
`, c.ClusterPods, c.Name, diskDir)
}

// cni joins every pod by a cable of its own to the node, not by a bridge: all traffic then passes the node's routing
// and its translations of Service addresses, whether or not the kernel filters on bridges.
func (c Config) cni() string {
	type object = map[string]any
	conf := object{
		"cniVersion": "1.0.0",
		"name":       "pods",
		"plugins": []object{
			{
				"type": "ptp", "ipMasq": false, "mtu": 1500,
				"ipam": object{
					"type": "host-local", "dataDir": diskDir + "/cni",
					"ranges": [][]object{{{"subnet": c.Pods}}},
					"routes": []object{{"dst": "0.0.0.0/0"}},
				},
			},
			{"type": "portmap", "backend": "nftables", "capabilities": object{"portMappings": true}},
		},
	}
	text, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		panic(err) // strings, numbers and prefixes always encode
	}
	return string(text)
}

// masquerade lets pods reach the link under the node's address: pod addresses mean nothing there, and with overlapping
// networks they would mean someone else. The flush takes away what the node had before it lost power; the namespace is
// the node's alone.
func (c Config) masquerade() string {
	return strings.ReplaceAll(`flush ruleset
table ip isthmus-link {
	chain out {
		type nat hook postrouting priority srcnat + 10; policy accept;
		ip saddr PODS oifname "`+LinkIface+`" masquerade
	}
}
`, "PODS", c.ClusterPods.String())
}

package keeper

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/hack/kube/pki"
	"isthmus.dev/isthmus/hack/kube/plan"
	"isthmus.dev/isthmus/hack/kube/process"
)

// nodeNamespaces are what a node has of its own besides its network.
const nodeNamespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// writePKI writes every certificate and kubeconfig of the cluster.
func (c *cluster) writePKI() error {
	ca, err := pki.NewAuthority(c.plan.Name + "-ca")
	if err != nil {
		return err
	}
	front, err := pki.NewAuthority(c.plan.Name + "-front-proxy-ca")
	if err != nil {
		return err
	}
	private, public, err := pki.SigningKey()
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"pki/ca.crt": ca.Cert, "pki/ca.key": ca.Key, "pki/front-ca.crt": front.Cert,
		"pki/accounts.key": private, "pki/accounts.pub": public,
	}
	issue := func(name string, by *pki.Authority, s pki.Subject) (pki.Pair, error) {
		pair, err := by.Issue(s)
		files[name+".crt"], files[name+".key"] = pair.Cert, pair.Key
		return pair, err
	}
	inside := netip.AddrPortFrom(c.plan.LANAddr, plan.APIPort).String()
	server := pki.Subject{Name: "kube-apiserver",
		Hosts: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		Addrs: []netip.Addr{c.plan.HostAddr, c.plan.LANAddr, c.plan.APIVIP, netip.AddrFrom4([4]byte{127, 0, 0, 1})}}
	if _, err := issue("pki/apiserver", ca, server); err != nil {
		return err
	}
	if _, err := issue("pki/front-client", front, pki.Subject{Name: "front-proxy-client"}); err != nil {
		return err
	}
	clients := map[string]pki.Subject{
		"pki/apiserver-kubelet": {Name: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}},
		"pki/admin":             {Name: "admin", Groups: []string{"system:masters"}},
		"pki/controllers":       {Name: "system:kube-controller-manager"},
		"pki/scheduler":         {Name: "system:kube-scheduler"},
		"pki/proxy":             {Name: "system:kube-proxy"},
	}
	for name, subject := range clients {
		pair, err := issue(name, ca, subject)
		if err != nil {
			return err
		}
		files[name+".kubeconfig"] = pki.Kubeconfig(c.plan.Name, inside, ca.Cert, pair)
		if name == "pki/admin" {
			host := netip.AddrPortFrom(c.plan.HostAddr, plan.APIPort).String()
			files["kubeconfig"] = pki.Kubeconfig(c.plan.Name, host, ca.Cert, pair)
		}
	}
	for _, m := range c.nodes {
		dir := "nodes/" + m.plan.Name + "/pki/"
		pair, err := issue(dir+"kubelet", ca, pki.Subject{Name: "system:node:" + m.plan.Name, Groups: []string{"system:nodes"},
			Hosts: []string{m.plan.Name}, Addrs: []netip.Addr{m.plan.LANAddr}})
		if err != nil {
			return err
		}
		files[dir+"kubelet.kubeconfig"] = pki.Kubeconfig(c.plan.Name, inside, ca.Cert, pair)
		files[dir+"proxy.kubeconfig"] = files["pki/proxy.kubeconfig"]
		files[dir+"ca.crt"] = ca.Cert
	}
	for name, text := range files {
		if err := write(filepath.Join(c.dir, name), text); err != nil {
			return err
		}
	}
	return nil
}

// startStore starts etcd and the API server; the rest of the control plane exits when the API server is not ready, so
// it is only prepared. etcd needs no TLS: nothing but the API server is on its loopback interface.
func (c *cluster) startStore() error {
	const peers, clients = "http://127.0.0.1:2380", "http://127.0.0.1:2379"
	c.etcd = c.daemon("etcd", "--name=etcd", "--data-dir="+filepath.Join(c.dir, "etcd"), "--listen-client-urls="+clients,
		"--advertise-client-urls="+clients, "--listen-peer-urls="+peers, "--initial-advertise-peer-urls="+peers,
		"--initial-cluster=etcd="+peers, "--unsafe-no-fsync", "--log-level=warn", "--snapshot-count=5000",
		"--auto-compaction-mode=periodic", "--auto-compaction-retention=10m")
	c.api = c.daemon("kube-apiserver", c.apiserver(clients)...)
	file := func(name string) string { return filepath.Join(c.dir, "pki", name) }
	controllers, scheduler := file("controllers.kubeconfig"), file("scheduler.kubeconfig")
	c.others = []*process.Daemon{
		c.daemon("kube-controller-manager", "--kubeconfig="+controllers, "--authentication-kubeconfig="+controllers,
			"--authorization-kubeconfig="+controllers, "--leader-elect=false", "--use-service-account-credentials",
			"--service-account-private-key-file="+file("accounts.key"), "--root-ca-file="+file("ca.crt"),
			"--cluster-signing-cert-file="+file("ca.crt"), "--cluster-signing-key-file="+file("ca.key"),
			"--allocate-node-cidrs=false", "--cluster-cidr="+c.plan.Pods.String(), "--bind-address=127.0.0.1",
			"--node-monitor-period=2s", "--node-monitor-grace-period=30s", "--kube-api-qps=200", "--kube-api-burst=400"),
		c.daemon("kube-scheduler", "--kubeconfig="+scheduler, "--authentication-kubeconfig="+scheduler,
			"--authorization-kubeconfig="+scheduler, "--leader-elect=false", "--bind-address=127.0.0.1"),
	}
	if err := c.etcd.Start(); err != nil {
		return err
	}
	return c.api.Start()
}

// apiserver returns the API server's flags. With aggregator routing it calls webhooks and extension servers at pod
// addresses, so that no kube-proxy is needed beside it.
func (c *cluster) apiserver(etcd string) []string {
	file := func(name string) string { return filepath.Join(c.dir, "pki", name) }
	return []string{
		"--etcd-servers=" + etcd,
		"--bind-address=" + c.plan.LANAddr.String(), fmt.Sprintf("--secure-port=%d", plan.APIPort),
		"--advertise-address=" + c.plan.LANAddr.String(), "--service-cluster-ip-range=" + c.plan.Services.String(),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + file("accounts.pub"), "--service-account-signing-key-file=" + file("accounts.key"),
		"--client-ca-file=" + file("ca.crt"), "--tls-cert-file=" + file("apiserver.crt"), "--tls-private-key-file=" + file("apiserver.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
		"--kubelet-client-certificate=" + file("apiserver-kubelet.crt"), "--kubelet-client-key=" + file("apiserver-kubelet.key"),
		"--kubelet-certificate-authority=" + file("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + file("front-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User", "--proxy-client-cert-file=" + file("front-client.crt"),
		"--proxy-client-key-file=" + file("front-client.key"), "--enable-aggregator-routing", "--event-ttl=1h",
		"--shutdown-delay-duration=0s", "--max-requests-inflight=400",
	}
}

// daemon describes a program of the control plane.
func (c *cluster) daemon(name string, args ...string) *process.Daemon {
	return process.NewDaemon(c.keeper.reaper, c.keeper.log.With("cluster", c.plan.Name), process.Spec{
		Name: name, Path: filepath.Join(c.keeper.config.Bin, "kube"), Args: append([]string{name}, args...),
		Log: filepath.Join(c.dir, "log", strings.TrimPrefix(name, "kube-")+".log"), Inside: c.ns,
	})
}

func writeJSON(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return write(path, append(text, '\n'))
}

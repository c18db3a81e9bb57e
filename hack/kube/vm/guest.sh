#!/bin/sh
# The checks of vm.sh, inside the virtual machine; ends with "vm: PASS" when all of them hold.
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

# found lists what a lab might leave.
found() {
	find /sys/fs/cgroup -type d -name '*isthmus*'
	cat /sys/fs/cgroup/cgroup.subtree_control
	nft list ruleset
	ip -br link
	sort /proc/mounts
	find /etc /var/lib /var/log /tmp /root /opt -maxdepth 1 ! -name 'systemd-private-*' | sort
}
want() {
	[ "$1" = "$2" ] || { echo "vm: $3 is $1, want $2"; exit 1; }
}
kubectl() { kubelab kubectl c1 -- "$@"; }

echo "vm: Linux $(uname -r), $(grep CapEff /proc/self/status)"
want "$(stat -f -c %T /sys/fs/cgroup)" cgroup2fs "the file system of cgroups"
before=$(found)
kubelab up --clusters 1 --prebuilt /opt/kube --timeout 15m || { kubelab logs; exit 1; }
kubelab load-image c1 /opt/tools.tar
until kubectl get serviceaccount default >/dev/null 2>&1; do sleep 1; done
kubectl apply -f - <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: tools, image: "isthmus.local/tools:1", command: [sleep, infinity], resources: {limits: {memory: 64Mi, cpu: 200m}}}
---
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - name: hungry
    image: isthmus.local/tools:1
    command: [sh, -c, "exec awk 'BEGIN { s = \"0123456789abcdef\"; while (1) s = s s }'"]
    resources: {limits: {memory: 32Mi}}
Y
kubectl wait --for=condition=Ready pod/limited --timeout=10m
kubectl wait --for=jsonpath='{.status.containerStatuses[0].state.terminated.reason}'=OOMKilled pod/hungry --timeout=10m
want "$(kubectl exec limited -- cat /sys/fs/cgroup/memory.max)" 67108864 "the limit of memory"
want "$(kubectl exec limited -- cat /sys/fs/cgroup/cpu.max)" "20000 100000" "the limit of processor time"
want "$(kubectl exec limited -- dig +short kubernetes.default.svc.cluster.local)" 10.97.0.1 "the answer of DNS"
kubelab fault node-kill c1/n1
kubelab fault node-start c1/n1
kubectl wait --for=jsonpath='{.status.containerStatuses[0].restartCount}'=1 pod/limited --timeout=10m
kubectl wait --for=condition=Ready pod/limited --timeout=10m
kubectl get pods -A -o wide
kubelab down
want "$(found)" "$before" "what is there after down"
echo "vm: PASS"

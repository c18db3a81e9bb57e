# Real Kubernetes on this machine; see hack/kube/README.md. Included by the Makefile.
# hack/kube and hack/images are Go modules of their own; GOFLAGS of the product suit them too.

.PHONY: kubelab
kubelab:
	@mkdir -p bin
	@GOFLAGS='-trimpath -buildvcs=false' CGO_ENABLED=0 go build -C hack/kube -o $(CURDIR)/bin/kubelab ./cmd/kubelab

.PHONY: kube-up
kube-up: kubelab ## three real Kubernetes clusters on this machine (root; a first run builds Kubernetes)
	@bin/kubelab up --clusters 3 --overlap

.PHONY: kube-down
kube-down: kubelab ## take them away without a trace
	@bin/kubelab down

.PHONY: test-kube
test-kube: kubelab ## the checks of the clusters, on labs of their own (root)
	bin/kubelab build
	cd hack/images && GOFLAGS= CGO_ENABLED=0 go test ./...
	cd hack/kube && GOFLAGS='-trimpath -buildvcs=false' CGO_ENABLED=0 KUBELAB=$(CURDIR)/bin/kubelab go test ./... -count=1 -timeout 30m

.PHONY: bench-kube
bench-kube: kubelab ## figures of the clusters: build, start, memory, end, twenty rounds (root)
	cd hack/kube && GOFLAGS='-trimpath -buildvcs=false' CGO_ENABLED=0 KUBELAB=$(CURDIR)/bin/kubelab go test ./checks -run '^$$' -bench . -benchtime 1x -timeout 60m

.PHONY: test-kube-vm
test-kube-vm: kubelab ## a lab inside a virtual Debian machine with cgroup v2 (root; needs qemu, mmdebstrap)
	@mkdir -p .cache/images
	cd hack/images && GOFLAGS= CGO_ENABLED=0 go run ./cmd/images make tools -o $(CURDIR)/.cache/images/tools.tar --work $(CURDIR)/.cache/images
	hack/kube/vm/vm.sh bin/kubelab .cache/images

# Isthmus. Two commands matter: `make demo` and `make test`; `make` alone lists the rest.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# One set of flags for building, testing and linting, so that all of them share one build cache. Version control is
# read below, by git itself: Go's own stamping fails in a clone that belongs to another user.
export GOFLAGS := -trimpath -buildvcs=false
export CGO_ENABLED := 0

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT := $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS := -w -X isthmus.dev/isthmus/internal/version.version=$(VERSION) -X isthmus.dev/isthmus/internal/version.commit=$(COMMIT)

# What runs concurrently with shared state; these are tested under the race detector as well.
RACE := ./discovery/etcd/... ./controlplane/world/... ./controlplane/allocate/commit/... ./controlplane/translate/build/... ./controlplane/xdsserver/... ./controlplane/proxies/... ./xds/... ./federation/streams/... ./federation/peers/... \
	./federation/gossip/... ./federation/tunnel/... ./proxy/agent/... ./internal/meshtest/...
UNIT = $(shell go list ./... | grep -v /test/e2e)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: doctor
doctor: ## check this machine: tools, versions, kernel capabilities; says how to fix what is missing
	@hack/doctor.sh

.PHONY: build
build: binaries envoy ## build bin/ and fetch Envoy into .tools/

.PHONY: binaries
binaries:
	@command -v go >/dev/null || { echo 'build: error: Go is missing' >&2; echo 'build: hint: run make doctor' >&2; exit 1; }
	@mkdir -p bin
	go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...
	go build -ldflags '$(LDFLAGS)' -o bin/isthmus-shop ./demo/shop

.PHONY: envoy
envoy:
	@hack/envoy.sh

.PHONY: demo
demo: build ## three clusters with real Envoy on this machine, no root needed; Ctrl-C takes them down
	@exec bin/isthmus demo up

.PHONY: test
test: build capabilities unit e2e ## all tests: unit and end to end

# Names what this machine lacks before the tests that need it fail.
.PHONY: capabilities
capabilities:
	@hack/doctor.sh || echo 'test: warning: some tests below will fail for what is missing above' >&2

.PHONY: unit
unit: ## unit tests only
	go test $(UNIT)

.PHONY: check
check: unit vet lint verify-gen ## what to run before a commit: unit tests, vet, lint, format, generated code

.PHONY: race
race: ## the concurrent packages under the race detector (needs a C compiler)
	@CGO_ENABLED=1 go env CC | { read -r cc rest; command -v "$$cc" >/dev/null; } || { echo 'race: error: no C compiler, Go needs one for its race detector' >&2; \
		echo 'race: hint: install gcc' >&2; exit 1; }
	CGO_ENABLED=1 go test -race $(RACE)

.PHONY: fuzz
fuzz: ## every parser of foreign bytes with 20,000 inputs each (FUZZ_INPUTS)
	@hack/fuzz.sh

.PHONY: e2e
e2e: build ## end-to-end tests: whole clusters with real Envoy
	go test ./test/e2e/... -count=1 -timeout 30m

.PHONY: bench
bench: build ## measure the figures that the documentation quotes
	go test ./test/bench/... -run '^$$' -bench . -benchtime 1x -timeout 90m

.PHONY: gen
gen: ## regenerate the wire formats' Go code from api/
	@hack/gen.sh

.PHONY: verify-gen
verify-gen:
	@hack/gen.sh --verify

.PHONY: fmt
fmt: ## format Go code and .proto files
	gofmt -w $$(git ls-files -co --exclude-standard '*.go')
	@hack/tools.sh buf
	.tools/buf format -w

.PHONY: vet
vet:
	go vet ./...

.PHONY: lint
lint: ## formatting and staticcheck
	@hack/tools.sh staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$unformatted" ] || { \
		echo "lint: error: not formatted: $$unformatted" >&2; echo 'lint: hint: run make fmt' >&2; exit 1; }
	.tools/staticcheck ./...

.PHONY: clean
clean: ## remove what was built and fetched
	rm -rf bin .tools .cache

include hack/kube/kube.mk

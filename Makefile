# The commands of this project. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export CGO_ENABLED := 0

# In the form of semver.org, which upstream's kubelet expects of a container runtime; after the + is what it was built of.
VERSION := 0.1.0+$(shell git describe --always --dirty 2>/dev/null || echo unknown)
# kubectl, here and upstream's own in the tests, is told its release by the linker.
LDFLAGS := -s -w -X main.version=$(VERSION) -X k8s.io/component-base/version.gitVersion=v1.37.2
STATICCHECK = go tool -modfile=test/tools/go.mod staticcheck

.PHONY: help
help: ## list the targets
	@awk -F': .*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: init ## build bin/yare (and bin/kubectl, a link to it) and bin/yare-oci
	go build -trimpath -ldflags='$(LDFLAGS)' -o bin/yare ./cmd/yare
	go build -trimpath -ldflags='$(LDFLAGS)' -o bin/yare-oci ./cmd/yare-oci
	@ln -sf yare bin/kubectl

# The program that runs inside containers and holds them: built first, embedded in bin/yare. Where there is an entry of its own, it
# begins there and not in the Go runtime (see oci/init/bare).
ENTRY := $(if $(wildcard oci/init/entry_$(shell go env GOARCH).s),-E main.entry)
.PHONY: init
init:
	@go build -trimpath -ldflags='-s -w $(ENTRY)' -o oci/bin/yare-init ./oci/init
	@sha256sum <oci/bin/yare-init >oci/bin/yare-init.sum

.PHONY: setup
setup: ## install what the tests need beyond Go, from Debian's packages
	@scripts/setup

.PHONY: demo
demo: build ## start a cluster, run examples/hello, show it being served, take it down
	@scripts/demo

.PHONY: check
check: init ## modules, format, vet, staticcheck, architecture, short tests with the race detector
	@scripts/setup
	@scripts/tidy
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt these:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	$(STATICCHECK) ./...
	CGO_ENABLED=1 go test -race -short ./...

.PHONY: test
test: build setup ## everything that must pass, real containers included
	go test ./...
	go test -C test/cluster -count=1 -timeout 20m ./...
	go test -C test/campaign -count=1 -timeout 20m
	go test -C test/conformance ./...
	go test -C test/roles ./...
	go test -C test/mutants -count=1
	go test -C test/runtimevalidation ./...
	$(MAKE) runtime-validation
	$(MAKE) psa
	$(MAKE) conformance-smoke

# Upstream's programs come from the Go module proxy and are built once; containerd needs Debian's runc and CNI plugins.
.PHONY: test-peers
test-peers: build setup ## each component alone among upstream's programs, and upstream's alone
	go test -C test/peers -count=1 -timeout 30m ./host ./cluster

.PHONY: differential
differential: build setup ## the same thousands of requests to our API server and upstream's: no new difference unexplained
	go test -C test/peers -count=1 -timeout 20m -v ./differential -args $(if $(ONLY),-only '$(ONLY)') -list '$(CURDIR)/bin/differences.txt'

.PHONY: differential-accept
differential-accept: build setup ## take note of differences that were mended, in testdata/open.txt
	go test -C test/peers -count=1 -timeout 20m -v ./differential -args -accept

.PHONY: peers
peers: build setup ## a cluster of upstream's programs until Ctrl-C, for make conformance KUBECONFIG=: NAME= DIR= OURS=
	go run -C test/peers . $(if $(NAME),-name '$(NAME)') $(if $(DIR),-dir '$(abspath $(DIR))') -ours '$(OURS)'

.PHONY: test-v2
test-v2: build setup ## a host with cgroup v2 alone, booted under qemu: ONLY='expression of packages'
	@scripts/setup-v2
	go test -C test/v2host -count=1 -timeout 60m ./... $(if $(ONLY),-only '$(ONLY)')

.PHONY: crash
crash: build setup ## kill -9 the server 100 times under load: nothing acknowledged is lost
	go test -C test/cluster -count=1 -timeout 60m -run TestCrash -kills 100 -v ./...

CAMPAIGN = go test -C test/campaign -count=1 -timeout 60m -v

.PHONY: kill
kill: build setup ## kill -9 the runtime 1,000 times under load and at each of its steps, and 1,000 shims: KILLS=
	$(CAMPAIGN) -run '^(TestServerKilled|TestShimKilled|TestKilledAtEachCall)$$' -kills $(or $(KILLS),1000) \
		-shim-kills $(or $(KILLS),1000) -within 2s -first-call 1 -last-call 2000 -call-stride 3

.PHONY: soak
soak: build setup ## 500 containers at once; 10,000 starts and removals in a row: MANY= STARTS=
	$(CAMPAIGN) -run '^(TestMany|TestInARow)$$' -many $(or $(MANY),500) -starts $(or $(STARTS),10000)

.PHONY: linear
linear: build ## kill -9 the API server 200 times: what concurrent clients saw is linearizable
	go test -C test/cluster -count=1 -timeout 60m -run TestLinear -linear-kills 200 -v ./...

.PHONY: servers
servers: build setup ## kill, cut off and pause the server that leads, of three, 30 times each: what clients saw is linearizable: FAULTS=
	go test -C test/cluster -count=1 -timeout 120m -run TestServers -server-faults $(or $(FAULTS),30) -v ./...

.PHONY: image-large
image-large: ## pull images of 1 GB in 20 layers, gzip, zstd and eStargz, and compare all of what comes out
	go test ./image -count=1 -timeout 20m -run TestPullWhole -large -v

.PHONY: bench
bench: build setup ## measure this machine beside the budgets and goals
	go run -C test/bench . -yare $(CURDIR)/bin/yare

# Upstream's conformance suite, doc/conformance.md. KUBECONFIG counts only when it is given to make itself: tests must
# not reach the cluster that somebody happens to work with.
CONFORMANCE = go run -C test/conformance .
FOCUS ?=
SKIP ?=
PROCS ?= 4
TIMEOUT ?= 90m
CONFORMANCE_RUN = -yare '$(CURDIR)/bin/yare' -kubectl '$(CURDIR)/bin/kubectl' -procs '$(PROCS)' -timeout '$(TIMEOUT)' \
	$(if $(filter command,$(firstword $(origin KUBECONFIG))),-kubeconfig '$(abspath $(KUBECONFIG))') $(if $(IMAGES),-images '$(IMAGES)') \
	$(if $(REGISTRY),-registry '$(REGISTRY)') $(if $(BESIDE),-beside) $(if $(FAMILIES),-families '$(FAMILIES)')

.PHONY: conformance
conformance: build setup ## upstream's conformance suite: FOCUS= SKIP= PROCS= TIMEOUT= KUBECONFIG= IMAGES= REGISTRY= BESIDE= FAMILIES=
	$(CONFORMANCE) run $(CONFORMANCE_RUN) -focus '$(FOCUS)' -skip '$(SKIP)'

.PHONY: conformance-smoke
conformance-smoke: build setup ## at most five minutes of the suite that touch each of its areas
	$(CONFORMANCE) run $(CONFORMANCE_RUN) -names smoke.txt -timeout 5m

.PHONY: conformance-accept
conformance-accept: ## keep what the last run passed, in the ratchet and in doc/conformance.md
	$(CONFORMANCE) accept

.PHONY: conformance-images
conformance-images: ## make the images of the suite anew
	$(CONFORMANCE) images

# Upstream's validation of OCI runtimes, doc/runtime-validation.md, against ours and Debian's runc.
VALIDATION = go run -C test/runtimevalidation .

.PHONY: runtime-validation
runtime-validation: build setup ## runtime-tools' validation programs against yare-oci and runc: FOCUS=
	$(VALIDATION) run -yare '$(CURDIR)/bin/yare-oci' -focus '$(FOCUS)'

.PHONY: runtime-validation-accept
runtime-validation-accept: ## keep what the last run passed in the ratchet
	$(VALIDATION) accept

.PHONY: psa
psa: build ## upstream's fixtures of the Pod Security Standards, against our API server
	go run -C test/psa . -yare '$(CURDIR)/bin/yare'

.PHONY: psa-accept
psa-accept: build ## the same, and keep what passes for the first time
	go run -C test/psa . -yare '$(CURDIR)/bin/yare' -accept

.PHONY: runtime-peers
runtime-peers: build ## containerd and Podman, Debian's packages, with yare-oci as their runtime
	@scripts/setup peers
	go test -C test/runtimepeers -count=1 -timeout 30m -v . -runtime '$(CURDIR)/bin/yare-oci'

# crictl comes from the Go module proxy; it has a module of its own, test/cripeers/crictl.
.PHONY: cri-peers
cri-peers: build ## the suite of CRI against containerd, Debian's package, and crictl against our server
	@scripts/setup peers
	go test -C test/cripeers -count=1 -timeout 30m -v .

# Upstream's CSI driver for tests: a folder with its source (git clone https://github.com/kubernetes-csi/csi-driver-host-path).
.PHONY: csi-peers
csi-peers: build ## upstream's csi-driver-host-path, provisioner, attacher and resizer: SOURCE=folder of the driver's source
	@test -n '$(SOURCE)' || { echo 'csi-peers: name the source of csi-driver-host-path by SOURCE='; exit 1; }
	go test -C test/csipeers -count=1 -timeout 20m -v . -driver-source '$(abspath $(SOURCE))'

.PHONY: mutants
mutants: init setup ## take protections out one by one: the tests of security classes must be red
	go run -C test/mutants .

.PHONY: golden
golden: ## rewrite the golden files from what the code does; read the difference
	go test ./... -update

.PHONY: clean
clean: ## remove what was built
	rm -rf bin oci/bin/yare-init oci/bin/yare-init.sum

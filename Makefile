# Causeway: see README.md. Targets install what they need on Debian or Ubuntu (as root).
SHELL := /bin/bash
GO ?= go
BIN := bin
export PATH := $(CURDIR)/$(BIN):/usr/sbin:/sbin:$(PATH)

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
KUBERNETES_PACKAGES := gcc libc6-dev busybox-static runc iproute2 iptables nftables ipset conntrack iputils-ping iputils-arping tcpdump procps frr \
  curl netcat-openbsd socat bind9-dnsutils iperf
PACKAGES := gcc libc6-dev iproute2 iptables nftables ipset conntrack iputils-ping tcpdump procps bird2 frr gobgpd graphviz iperf3
VM_PACKAGES := qemu-system-x86 kmod

.PHONY: test-vm
.PHONY: kubernetes cluster-up cluster-down test-cluster bench-cluster conformance
.PHONY: all build plugins deps test race bench demo lint clean generate manifests image

all: build

## build: the programs, static, in bin/
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

## plugins: the CNI plugins and cnitool that tests chain with ours, in bin/
plugins:
	CGO_ENABLED=0 $(GO) build -o $(BIN)/ github.com/containernetworking/cni/cnitool \
	  github.com/containernetworking/plugins/plugins/meta/portmap github.com/containernetworking/plugins/plugins/meta/bandwidth \
	  github.com/containernetworking/plugins/plugins/main/ptp github.com/containernetworking/plugins/plugins/ipam/host-local

## deps: Debian's packages (real routers, iptables); needs root
deps:
	@deploy/scripts/deps $(PACKAGES)

## demo: the two-rack fabric, pods, pings, a cut uplink; under three minutes after the build
demo: deps build plugins
	$(BIN)/causeway-lab demo

## test: everything that runs on one machine without Kubernetes, with the race detector
test: deps build plugins lint
	deploy/scripts/test

## lint: formatting and vet
lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...

## bench: benchmarks against peers, into docs/benchmarks.md's form; BENCH=short for a look, BENCH=vm for IPIP under a stock kernel; ARGS='--only PART,...'
bench: deps build plugins
	@[ -n "$(BENCH)" ] || $(MAKE) kubernetes
	@[ "$(BENCH)" != vm ] || deploy/scripts/deps $(VM_PACKAGES)
	deploy/scripts/bench $(ARGS)

## kubernetes: real Kubernetes, etcd and containerd for the test cluster, into ~/.cache/causeway (25 minutes the first time)
kubernetes:
	@deploy/scripts/deps $(KUBERNETES_PACKAGES)
	$(GO) run ./test/cluster/cmd/kubernetes

## cluster-up: a Kubernetes cluster of four nodes in two racks on this machine, without a network; says how to use it
cluster-up: kubernetes
	$(GO) run ./test/cluster/cmd/cluster up

## cluster-down: ends it and removes everything it left
cluster-down:
	$(GO) run ./test/cluster/cmd/cluster down

## test-cluster: everything that needs the Kubernetes API, then Causeway on the whole cluster
test-cluster: kubernetes image plugins
	deploy/scripts/test-cluster

## bench-cluster: CNI ADD and the API server's load on the cluster, into docs/benchmarks.md (5 minutes)
bench-cluster: kubernetes image plugins
	$(GO) run ./test/cluster/bench --command 'make bench-cluster'

## bench-watchers: what 1,000 agents' watches and one ADD cost the API server (10 minutes, 6 GB)
bench-watchers: kubernetes
	$(GO) run ./test/bench/watchers

## conformance: upstream's specs of networking and policy against Causeway on the cluster, for docs/conformance.md (an hour);
## ARGS='-suites netpol -policy iptables -short' for a part, ARGS=-help for more
conformance: kubernetes image
	$(GO) run ./test/cluster/cmd/kubernetes conformance
	$(GO) run ./test/cluster/cmd/conformance $(ARGS)

## test-vm: what needs a kernel with everything (ipip, legacy iptables), under Debian's, in a virtual machine; ARGS='-only TEXT' for a part
test-vm: deps build plugins
	@deploy/scripts/deps $(VM_PACKAGES)
	deploy/scripts/test-vm $(ARGS)

## generate: deep copies, CRDs, the admission warnings
generate:
	$(GO) generate ./...

## manifests: deploy/causeway.yaml and the Kustomize base, out of the Helm chart and the CRDs
manifests:
	deploy/scripts/manifests

## image: the container image, without Docker or a registry, as bin/causeway-image.tar
image:
	@VERSION=$(VERSION) deploy/scripts/image

clean:
	rm -rf $(BIN)

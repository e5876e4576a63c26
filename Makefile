# Everything that is done to this checkout. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CARGO ?= cargo
# none leaves the cluster tests out, current takes the cluster of KUBECONFIG, else the test cluster is brought up.
# A KUBECONFIG on the command line says which cluster is meant; one of the environment does not.
CLUSTER ?= $(if $(filter command,$(firstword $(origin KUBECONFIG))),current,test)
# The cluster was asked for, and is not what is there by default.
ON_CLUSTER := $(filter-out none,$(if $(or $(filter command environment,$(firstword $(origin CLUSTER))), \
	$(filter command,$(firstword $(origin KUBECONFIG)))),$(CLUSTER)))
TAG ?= dev
FUZZ_SECONDS ?= 60
# For make conformance: a folder of scenarios, one scenario, areas separated by commas, write to update the known gaps.
CASES ?= e2e/conformance/cases
ONLY ?=
AREA ?=
GAPS ?=

TARGET := $(shell rustc -vV | sed -n 's/^host: //p')
CARGO_FOLDER := $(or $(CARGO_HOME),$(HOME)/.cargo)
IMAGES := weft-operator weft-webhook weft-proxy weft-cni weft-app
PROXY_LIMIT_BYTES := 15000000
comma := ,
# On the command line, and not in RUSTFLAGS, so that builds for this machine stay as they are.
STATIC := --profile image --locked --target $(TARGET) --config 'target.$(TARGET).rustflags=["-Ctarget-feature=+crt-static", \
	"-Clink-arg=-Wl$(comma)-z$(comma)pack-relative-relocs", \
	"--remap-path-prefix=$(CURDIR)=/weft", "--remap-path-prefix=$(CARGO_FOLDER)=/cargo"]'

# The test programs of these packages, but those that need a cluster. By name in the whole workspace: for some packages
# alone Cargo would choose other features, and build every dependency again.
test_programs = $(patsubst %,--test %,$(filter-out cluster,$(sort $(basename $(notdir $(wildcard $(1:%=%/tests/*.rs)))))))

.PHONY: help build test lint unit golden proxy local conformance cluster crds config golden-update deny bench micro fuzz fuzz-keep \
	images e2e propagation demo demo-cluster ci

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

build: ## All programs, for this machine
	$(CARGO) build --locked --workspace --bins

test: ## Everything, quick things first; CLUSTER=none: without the cluster tests
	@for step in lint unit golden proxy local conformance cluster; do \
		echo "== $$step"; start=$$SECONDS; $(MAKE) $$step ON_CLUSTER=; echo "== $$step passed after $$((SECONDS - start)) s"; \
	done

lint: ## Formatting, clippy, orphaned files, dependencies between crates, shell scripts, licences
	$(CARGO) fmt --all --check
	.ci/orphans
	.ci/dependencies
	.ci/scripts
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@$(MAKE) deny

unit: ## Tests beside the code; the micro-benchmarks run once, unmeasured
	$(CARGO) test --locked --workspace --lib --bins --bench request

golden: ## What is rendered, injected and generated, against what is checked in
	$(CARGO) test --locked --workspace $(call test_programs,bundle crds operator webhook e2e/dist)

proxy: ## The proxy and the sample application, with real sockets and network namespaces; what fuzzing found
	$(CARGO) test --locked --workspace $(call test_programs,sidecar cni e2e/app fuzz)

local: build ## Local mode
	$(CARGO) test --locked --workspace $(call test_programs,cli)

conformance: build ## Recorded scenarios, in local mode, or with CLUSTER=test|current on Kubernetes; ONLY=ID one, AREA=NAME some, CASES=DIR others
	$(if $(ON_CLUSTER),CLUSTER=$(CLUSTER) e2e/run conformance,target/debug/weft-conformance) \
		--cases $(CASES) --deliberate e2e/conformance/deliberate.yaml \
		--gaps e2e/conformance/gaps.yaml --junit target/conformance.xml $(if $(AREA),--area $(AREA)) \
		$(if $(ONLY),--only $(ONLY) --verbose) $(if $(filter write,$(GAPS)),--write-gaps)

cluster: ## Cluster tests, unless CLUSTER=none
	@if [[ $(CLUSTER) == none ]]; then \
		echo "cluster tests were left out: CLUSTER=none"; \
	elif [[ $(CLUSTER) != current && $$EUID != 0 ]]; then \
		echo "cluster tests did not run: the test cluster needs root; CLUSTER=current takes the cluster of KUBECONFIG," \
			"CLUSTER=none leaves them out" >&2; \
		exit 1; \
	else \
		$(MAKE) e2e; \
	fi

crds: ## Regenerate crds/yaml from the Rust types, and what is made of it
	$(CARGO) run --locked -q -p weft-crds --bin crdgen
	@$(MAKE) config

config: ## Regenerate config/base, config/crds, config/overlays/cni and config/charts from config/source
	$(CARGO) run --locked -q -p weft-dist -- config

golden-update: ## Rewrite the golden files; review the difference
	UPDATE_GOLDEN=1 $(MAKE) golden

deny: ## Licences, second TLS stacks, duplicates, advisories
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked check bans licenses sources; \
	else \
		echo "deny.toml was NOT checked: cargo-deny is not installed (cargo install --locked cargo-deny)"; \
	fi

bench: ## Weft and its peers side by side (QUICK=1: for a look; RECORD=1: into docs/performance.md)
	bench/run $(if $(QUICK),--quick) $(if $(RECORD),--record)

micro: ## What the steps of a request cost on their own
	$(CARGO) bench --locked -p weft-sidecar --bench request

fuzz: ## Each fuzz target for FUZZ_SECONDS (ONLY=NAME one); needs cargo-fuzz
	fuzz/run $(FUZZ_SECONDS) $(ONLY)

fuzz-keep: ## Adds to fuzz/corpus what make fuzz found and reaches further
	@for target in $$($(CARGO) fuzz list --fuzz-dir fuzz); do \
		target/fuzz/$(TARGET)/release/$$target -set_cover_merge=1 -max_len=1024 "fuzz/corpus/$$target" "target/fuzz/found/$$target"; \
	done

images: build ## dist/images/*.tar: static programs in archives for every container runtime, without a container engine
	$(CARGO) build $(STATIC) -p weft-operator -p weft-webhook -p weft-sidecar -p weft-cni -p weft-app --bins
	@$(MAKE) $(IMAGES:%=dist/images/%.tar)

# Cargo knows what changed; the archive of an unchanged program is the same.
.PHONY: $(IMAGES:%=dist/images/%.tar)
$(IMAGES:%=dist/images/%.tar): dist/images/%.tar:
	@install -D -m 755 target/$(TARGET)/image/$* target/images/$*
	@target/debug/weft-dist image --program target/images/$* --tag $(TAG) --output $@ \
		$(if $(filter weft-proxy,$*),--user 1337:1337 --limit $(PROXY_LIMIT_BYTES)) $(if $(filter weft-cni,$*),--user 0:0)

e2e: ## Cluster tests: on the test cluster, or with CLUSTER=current on that of KUBECONFIG
	CLUSTER=$(CLUSTER) e2e/run

propagation: ## Measures how long a route change takes to reach 10 pods, on the cluster of KUBECONFIG with Weft installed
	$(CARGO) run --locked -q -p weft-e2e --bin propagation

demo: ## Local mode shown step by step, without root and without a cluster
	$(CARGO) build --locked -p weft-cli -p weft-sidecar -p weft-app
	samples/demo

demo-cluster: ## The same on Kubernetes: the test cluster, or with CLUSTER=current that of KUBECONFIG
	CLUSTER=$(CLUSTER) samples/demo-cluster

ci: ## What continuous integration runs
	.ci/run

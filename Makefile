# Everything that a person, or CI, does with this checkout. `make` alone prints what there is.
# Targets that need root say so; run them as `sudo make ...`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Debian's own Python, whatever comes first on the caller's PATH.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
READY := $(VENV)/.installed
SOURCES := calico_plugin tests scripts plugin $(wildcard benchmarks)

# What the product runs with, then what tests and demo need besides.
RUNTIME_PACKAGES := python3-venv $(shell cat plugin/packages.txt)
LAB_PACKAGES := docker.io systemd etcd-client busybox-static tcpdump iperf3 conntrack util-linux iputils-ping debootstrap docker-registry

.PHONY: help
help: ## this text
	@echo 'Calico for plain Docker hosts. The first things to try, on Debian 12:'
	@echo '  sudo make demo     two Docker hosts on this machine, the whole experiment, step by step'
	@echo '  sudo make test     everything that CI runs'
	@echo '  sudo make up       Calico for the Docker of this machine'
	@echo
	@echo 'All targets:'
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | \
	    while IFS=$$'\t' read -r target text; do printf '  %-14s %s\n' "$$target" "$$text"; done

# -- setting up -------------------------------------------------------------------------------------------------------
.PHONY: setup packages
setup: packages $(READY) ## install what is missing: Debian packages (root) and .venv; fast when nothing is

packages:
	@scripts/debian-packages $(RUNTIME_PACKAGES) $(LAB_PACKAGES)

$(READY): setup.cfg pyproject.toml constraints.txt
	@echo 'Installing the package and its libraries into $(VENV)'
	@[ -x $(BIN)/python ] && $(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]' > $(VENV)/install.log 2>&1 || \
	    { cat $(VENV)/install.log; exit 1; }
	@touch $@

.PHONY: root
root:
	@[ "$$(id -u)" -eq 0 ] || { echo 'This target makes network namespaces and needs root: sudo make $(MAKECMDGOALS)' >&2; exit 1; }

# -- checking ---------------------------------------------------------------------------------------------------------
.PHONY: fmt lint unit contract kernel lab test test-long golden
fmt: setup ## sort the imports
	@$(BIN)/isort -q $(SOURCES)

lint: setup ## flake8, import order, types, and who may import whom
	@$(BIN)/flake8 $(SOURCES)
	@$(BIN)/isort --check --diff -q $(SOURCES)
	@$(BIN)/mypy
	@$(PYTEST) -q tests/unit/test_layering.py

unit: setup ## tests without root and without a network
	@$(PYTEST) -q tests/unit

contract: setup ## the datastore's contract, on the in-memory store and on a real etcd
	@$(PYTEST) -q tests/contract

kernel: root setup ## tests against the real kernel, in namespaces (root)
	@$(PYTEST) -q tests/kernel

lab: root setup ## tests on whole Docker hosts (root)
	@$(PYTEST) -q tests/lab -m 'not long'

# Most tests wait for time-outs, restarts and elections, not for a processor: several at once, each in namespaces of its own.
# The lab's take longest, so they come first (tests/conftest.py says which tests stay together).
PARALLEL := -n 3 --dist loadgroup --no-loadscope-reorder tests/lab tests/kernel tests/contract tests/unit

test: root lint ## everything that CI runs (root)
	@$(PYTEST) -m 'not long' $(PARALLEL)

test-long: root lint ## the same with the long runs: 100 start/stop rounds, all Docker releases and more; hours (root)
	@$(PYTEST) $(PARALLEL)

.PHONY: constraints
constraints: setup ## pin in constraints.txt what is installed now
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable; } > constraints.new
	@mv constraints.new constraints.txt

.PHONY: docs
docs: setup ## write docs/calicoctl.md from the commands themselves
	@$(BIN)/python -m calico_plugin.cli.docs > docs/calicoctl.md.new
	@mv docs/calicoctl.md.new docs/calicoctl.md

golden: setup ## write the expected outputs (tests/golden) anew; review the difference
	@UPDATE_GOLDEN=1 $(PYTEST) -q tests/unit -k golden

# -- trying it --------------------------------------------------------------------------------------------------------
.PHONY: demo up down
demo: root setup ## play the experiment on two Docker hosts in namespaces (root); DOCKER=28, FORM=container, KEEP=1 leaves them up
	@$(BIN)/python -m tests.lab demo

up: root setup ## run calico-node for the Docker of this machine, with an etcd of its own (root)
	@$(BIN)/python scripts/up.py

down: root setup ## stop that calico-node and make this machine bare again (root)
	@$(BIN)/python scripts/up.py --down

# -- measuring --------------------------------------------------------------------------------------------------------
.PHONY: bench bench-ipam bench-driver bench-docker bench-net bench-policy
bench: bench-ipam bench-driver bench-docker bench-net bench-policy ## all benchmarks (root)

bench-ipam: setup ## addresses per second, one and eight hosts
	@$(BIN)/python -m benchmarks.ipam

bench-driver: root setup ## latency of each driver call and of a container's whole life (root)
	@$(BIN)/python -m benchmarks.driver

bench-docker: root setup ## docker run on our network and on Docker's own bridge (root)
	@$(BIN)/python -m benchmarks.docker_run

bench-net: root setup ## throughput and request rate, against a Docker bridge and a bare veth (root)
	@$(BIN)/python -m benchmarks.net

bench-policy: root setup ## how fast policy follows etcd, with up to 10,000 endpoints; what a packet costs (root)
	@$(BIN)/python -m benchmarks.policy
	@$(BIN)/python -m benchmarks.packets

# -- shipping ---------------------------------------------------------------------------------------------------------
IMAGE ?= calico/node:latest
BASE ?=
.PHONY: image image-test plugin
image: ## build the image calico/node with Docker (IMAGE=name, BASE=another Debian 12 to build on)
	@docker build --network host $(if $(BASE),--build-arg BASE=$(BASE)) -t $(IMAGE) .
	@docker image inspect -f '{{.RepoTags}} {{.Size}} bytes' $(IMAGE)

image-test: root setup ## tests of the image and of the managed plugin on Docker hosts (root)
	@$(PYTEST) tests/lab/test_image.py tests/lab/test_plugin.py

plugin: root ## make build/plugin for `docker plugin create`; needs debootstrap, no Docker (root)
	@scripts/debian-packages debootstrap
	@$(PYTHON) plugin/build.py

.PHONY: clean
clean: ## remove what was built here: .venv, caches; a lab's leftovers (when root)
	@if [ "$$(id -u)" -eq 0 ] && [ -x $(BIN)/python ]; then $(BIN)/python -m tests.lab down; fi
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

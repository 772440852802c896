# All commands of this checkout: make venv | demo | demo-egress | demo-inward | test | test-egress | test-inward |
# test-vm | test-packages | test-model | test-steps | bench | bench-workers | bench-egress | bench-inward |
# bench-fleet | docs | serve-docs | picture | pictures | soak | lint | deb | zipapp | wheel | manual | lock |
# options | clean

# Tests that run at the same time. They wait for processes and the kernel more than they compute, so this is
# more than there are cores.
WORKERS ?= 4

SOURCES := $(wildcard tproxy drivers tests bench packages)
# The folders with Python files: mypy refuses one without.
PYTHON_SOURCES = $(shell find $(SOURCES) -name '*.py' | cut -d / -f 1 | sort -u)
# Shell scripts, by their first line: hooks have no extension.
SHELL_SOURCES = $(shell find .ci $(SOURCES) $(wildcard vagrant) -type f -not -name '*.py' \
	-exec awk 'FNR == 1 && /^\#!.*[\/ ](ba|da)?sh( |$$)/ { print FILENAME } { nextfile }' {} +)

# The theme would print a page about plans of its makers.
MKDOCS = NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true .venv/bin/python -m mkdocs

.DEFAULT_GOAL := venv

.PHONY: venv
venv:
	@.ci/setup

.PHONY: demo
demo: venv
	.venv/bin/tproxy lab

# Guests without a route install software by a policy for their network.
.PHONY: demo-egress
demo-egress:
	@.ci/setup egress
	.venv/bin/tproxy lab --egress

# A client outside reaches what guests of two networks serve, by name over HTTPS.
.PHONY: demo-inward
demo-inward:
	@.ci/setup inward
	.venv/bin/tproxy lab --inward

# Seconds after which a test ends a program that hangs. A machine under load may be ten times slower, and its
# tests still pass.
test test-egress test-vm: export TPROXY_PATIENCE ?= 100

.PHONY: test
test: venv bytecode
	.venv/bin/python -m pytest -n $(WORKERS) $(wildcard tests/unit tests/netns)

# Tests start our programs thousands of times. An environment variable may keep Python from writing bytecode.
.PHONY: bytecode
bytecode:
	@.venv/bin/python -m compileall -q tproxy tests

# Those of routes, the gateway, tunnels, names and fleets, with real servers; `make test` has the first two as well.
INWARD_TESTS ?= tests/unit/inward tests/netns/inward tests/inward tests/unit/fleet tests/fleet

.PHONY: test-inward
test-inward: export TPROXY_PATIENCE ?= 100
test-inward:
	@.ci/setup inward
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile $(INWARD_TESTS)

# Tests of `tproxy egress` with real engines: squid, and the clients and servers of the packages' kinds.
.PHONY: test-egress
test-egress:
	@.ci/setup egress
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile tests/egress

# Tests with virtual machines. They are emulated, which takes minutes. VM_TESTS=tests/vm/test_guest.py runs only
# those of that file.
VM_TESTS ?= tests/vm

.PHONY: test-vm
test-vm:
	@.ci/setup vm
	.venv/bin/python -m pytest -n 2 --maxschedchunk=1 -rs $(VM_TESTS)

# Random steps on a real host against a model of what guests must see; `make test` has three rows of them.
EXAMPLES ?= 30

.PHONY: test-model
test-model: export TPROXY_PATIENCE ?= 100
test-model: venv
	TPROXY_MODEL_EXAMPLES=$(EXAMPLES) .venv/bin/python -m pytest -p no:xdist --timeout=0 tests/netns/model

# Each step of hook, restart, drain and upgrade is killed once, for some hours; `make test` takes a few steps of each.
.PHONY: test-steps
test-steps: export TPROXY_PATIENCE ?= 100
test-steps: venv
	TPROXY_ALL_STEPS=1 .venv/bin/python -m pytest -n $(WORKERS) tests/netns/test_killed_steps.py

# Mixed traffic with faults, every byte hashed by both ends. The report goes to build/soak.
MINUTES ?= 30

.PHONY: soak
soak: export TPROXY_PATIENCE ?= 100
soak: venv
	.venv/bin/python -m bench.soak --minutes $(MINUTES) $(SOAK)

# Options of the benchmark. BASE=path compares with tproxy of another checkout as well, which runs with its own
# virtual environment when it has one.
BENCH ?=
BENCH_OPTIONS = $(if $(BASE),--base $(BASE)) $(BENCH)

# Users have bytecode, because pip writes it. Here an environment variable may keep Python from writing it.
.PHONY: bench
bench:
	@.ci/setup bench
	.venv/bin/python -m compileall -q tproxy
	.venv/bin/python -m bench $(BENCH_OPTIONS)

# The documentation as a site in build/site, to be read from there, or from any web server. A warning is an error.
.PHONY: docs
docs: venv
	$(MKDOCS) build --strict

# The same, at http://127.0.0.1:8000/, built again whenever a page changes.
.PHONY: serve-docs
serve-docs: venv
	$(MKDOCS) serve

# Pictures of terminals in docs/img, from real runs in the lab.
.PHONY: pictures
pictures: venv
	.venv/bin/python -m bench.terminals

# docs/img/metrics.svg, from the answers of a real Prometheus.
.PHONY: picture
picture:
	@.ci/setup bench
	.venv/bin/python -m bench.picture

.PHONY: bench-workers
bench-workers:
	@.ci/setup bench
	.venv/bin/python -m compileall -q tproxy
	.venv/bin/python -m bench.workers $(BENCH_OPTIONS)

.PHONY: bench-inward
bench-inward:
	@.ci/setup bench
	.venv/bin/python -m compileall -q tproxy
	.venv/bin/python -m bench.inward $(BENCH)

.PHONY: bench-egress
bench-egress:
	@.ci/setup bench
	.venv/bin/python -m compileall -q tproxy
	.venv/bin/python -m bench.egress $(BENCH)

# Thousands of simulated hosts that follow a real etcd. FLEET="--hosts 1000" is quicker.
FLEET ?=

.PHONY: bench-fleet
bench-fleet:
	@.ci/setup inward
	.venv/bin/python -m compileall -q tproxy
	.venv/bin/python -m bench.fleet $(FLEET)

.PHONY: lint
lint: venv
	.venv/bin/ruff check $(SOURCES)
	.venv/bin/ruff format --check $(SOURCES)
	.venv/bin/mypy $(PYTHON_SOURCES)
	@if command -v shellcheck >/dev/null; then \
		shellcheck $(SHELL_SOURCES); \
	else \
		echo "shellcheck is not installed: $(SHELL_SOURCES) not checked"; \
	fi
	@if [ -x .venv/bin/ansible-lint ]; then \
		PATH="$(CURDIR)/.venv/bin:$$PATH" LC_ALL=C.UTF-8 ANSIBLE_HOME=$(CURDIR)/.venv/ansible \
			ansible-lint -q --offline --profile production drivers/ansible; \
	else \
		echo "ansible-lint is not installed: drivers/ansible not checked"; \
	fi
	@if command -v vagrant >/dev/null; then \
		VAGRANT_CWD=vagrant VAGRANT_HOME=$(CURDIR)/build/vagrant VAGRANT_DOTFILE_PATH=$(CURDIR)/build/vagrant/machines \
			vagrant validate --ignore-provider; \
	else \
		echo "vagrant is not installed: vagrant/Vagrantfile not checked"; \
	fi

# Packages go to dist/. DISTRIBUTIONS=trixie makes that one Debian package only (packages/distributions.yaml).
DISTRIBUTIONS ?=

.PHONY: deb
deb: setup-packages
	.venv/bin/python -m packages.deb $(DISTRIBUTIONS)

# One file that runs tproxy. MACHINE=aarch64 makes it for another kind of processor than this machine's.
.PHONY: zipapp
zipapp: setup-packages
	.venv/bin/python -m packages.zipapp $(if $(MACHINE),--machine $(MACHINE))

# Source distribution and wheel, as they can be uploaded to PyPI.
.PHONY: wheel
wheel: setup-packages
	rm -f dist/*.whl dist/*.tar.gz
	.venv/bin/python -m build --outdir dist . >/dev/null
	.venv/bin/twine check --strict dist/*.whl dist/*.tar.gz

# Man pages and shell completions, from the declarations of the commands.
.PHONY: manual
manual: setup-packages
	.venv/bin/python -m packages.manual build/manual

# The newest Python packages that pyproject.toml allows, for packages to carry.
.PHONY: lock
lock: setup-packages
	.venv/bin/uv pip compile --quiet --upgrade --python-platform linux --python-version 3.10 --generate-hashes \
		--custom-compile-command 'make lock' pyproject.toml --output-file packages/carried.txt

.PHONY: setup-packages
setup-packages:
	@.ci/setup packages

# Each package is installed, upgraded and removed on machines with clean roots of Debian, which takes minutes.
# PACKAGE_TESTS="tests/packages -k zipapp" runs some of them.
PACKAGE_TESTS ?= tests/packages

.PHONY: test-packages
test-packages: export TPROXY_PATIENCE ?= 100
test-packages:
	@.ci/setup roots
	.venv/bin/python -m pytest -p no:xdist --timeout=900 -rs $(PACKAGE_TESTS)

# The pages and the JSON schemas that are made of declarations: of options, metrics and JSON documents
# (CONTRIBUTING.md).
.PHONY: options
options:
	.venv/bin/python -m tproxy.config.reference
	.venv/bin/python -m tproxy.metrics.reference
	.venv/bin/python -m tproxy.cli.schemas

.PHONY: clean
clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

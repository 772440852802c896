# The whole interface of this checkout: make venv | demo | test | test-vm | bench | lint | clean

# Tests wait for processes and the kernel more than they compute: more of them than cores.
WORKERS ?= 4

SOURCES := $(wildcard tproxy drivers tests bench)
# Those of them that hold Python, since mypy refuses a directory without.
PYTHON_SOURCES = $(shell find $(SOURCES) -name '*.py' | cut -d / -f 1 | sort -u)
# Hooks have no extension: known by their first line.
SHELL_SOURCES = $(shell find .ci $(SOURCES) $(wildcard vagrant) -type f -not -name '*.py' \
	-exec awk 'FNR == 1 && /^\#!.*[\/ ](ba|da)?sh( |$$)/ { print FILENAME } { nextfile }' {} +)

.DEFAULT_GOAL := venv

.PHONY: venv
venv:
	@.ci/setup

.PHONY: demo
demo: venv
	.venv/bin/tproxy lab

# Seconds until what hangs is ended: a noisy machine may be ten times slower, and is still right.
test test-vm: export TPROXY_PATIENCE ?= 100

.PHONY: test
test: venv
	.venv/bin/python -m pytest -n $(WORKERS) $(wildcard tests/unit tests/netns)

# Virtual machines, under emulation: takes minutes. VM_TESTS=tests/vm/test_guest.py: only those.
VM_TESTS ?= tests/vm

.PHONY: test-vm
test-vm:
	@.ci/setup vm
	.venv/bin/python -m pytest -n 2 --maxschedchunk=1 -rs $(VM_TESTS)

# Bytecode is what users have: pip writes it, and environments may tell Python not to.
.PHONY: bench
bench:
	@.ci/setup bench
	.venv/bin/python -m compileall -q tproxy
	.venv/bin/python -m bench $(BENCH)

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

.PHONY: clean
clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# make demo    installs into .venv, then draws with the bundled pipeline, eager against optimised
# make test    installs what the tests need, then runs them all
# make test-full-size    the pipelines at their published sizes on an NVIDIA GPU; writes build/full-size.jsonl
# make lint    ruff and strict mypy
#
# torch is installed first, so that nothing later pulls in another build: on a machine with an NVIDIA GPU the newest
# supported one, elsewhere 2.13.0. An index that holds only CUDA wheels works without a GPU too, but they are large.
# To choose the build yourself:
#     make demo TORCH="torch==2.13.0 --index-url ADDRESS"

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

GPU := $(or $(wildcard /dev/nvidia0),$(shell nvidia-smi -L 2>/dev/null | grep '^GPU'))
TORCH_GPU := 'torch>=2.11,<2.15'
TORCH_CPU := 'torch==2.13.0'
TORCH ?= $(if $(GPU),$(TORCH_GPU),$(TORCH_CPU))
VENV ?= .venv
PYTHON ?=
PYTEST_ARGS ?=
# Processes that share the tests; each computes on one core.
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install
TYPED := build/typed

.PHONY: help demo test test-full-size lint clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/.installed-demo
	$(BIN)/rewriter demo

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

# In a process of its own, which is replaced should a kernel take it down.
test-full-size: $(VENV)/.installed-test
	@mkdir -p build
	$(BIN)/python -m pytest tests/full_size --full-size --full-size-report build/full-size.jsonl -n 1 -v $(PYTEST_ARGS)

# mypy does not follow the mapping of ops/, rules/, csrc/ and schemas/ into `rewriter`, so it is shown links laid out that way.
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/rewriter
	@ln -s $(CURDIR)/rewriter/* $(CURDIR)/ops $(CURDIR)/rules $(CURDIR)/csrc $(CURDIR)/schemas $(TYPED)/rewriter/
	cd $(TYPED) && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p rewriter

clean:
	rm -rf $(VENV) build demo-output

# A stamp for each set of dependencies: a second run installs nothing, a changed pyproject.toml installs again.
$(VENV)/.installed-demo: pyproject.toml $(VENV)/.installed-torch
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.installed-torch
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed-torch
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed-demo

$(VENV)/.installed-torch: | $(BIN)/python
	$(PIP) $(TORCH)
	@touch $@

$(BIN)/python:
	@python=""; \
	for name in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
	    if "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then python="$$name"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "make: no Python 3.11, 3.12 or 3.13 found. Install one (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "make: $$python cannot create virtual environments. Debian keeps that in a package of its own: apt-get install python3-venv" >&2; exit 1; \
	fi; \
	"$$python" -m venv $(VENV)

# Two commands do everything: `make demo` and `make test`. Settings:
#   PYTHON=python3.12      the interpreter that .venv is made with (3.11 or newer)
#   TORCH_INDEX=URL        where torch comes from, e.g. https://download.pytorch.org/whl/cpu to leave CUDA out
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)
# Each test process gets one thread; pytest-xdist uses the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo demo-full install test lint types check bench clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) install --quiet --index-url $(TORCH_INDEX) $(TORCH))
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/ready-dev: .venv/ready
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: .venv/ready-dev  ## make .venv with everything for development and tests

demo: .venv/ready  ## train the demo sweep (minutes the first time), print its table, write out/demo
	$(BIN)/python run.py -m +sweep=demo
	$(BIN)/python -m analysis tables demo --out out/demo

demo-full: .venv/ready  ## the demo with more seeds and more steps
	$(BIN)/python run.py -m +sweep=demo_full
	$(BIN)/python -m analysis tables demo_full --out out/demo_full

test: .venv/ready-dev  ## the tests
	$(BIN)/python -m pytest -n auto

lint: .venv/ready-dev  ## ruff: format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/ready-dev  ## mypy, strict
	$(BIN)/mypy

check: lint types test  ## what a change must pass

bench: .venv/ready-dev  ## planning and kernels, each against a peer in one interleaved run
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/mamba2_cpu.py

clean:  ## remove what the tools left behind; never the store
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis out

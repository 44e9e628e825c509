# Two commands do everything: `make demo` and `make test`. Settings:
#   PYTHON=python3.12      the interpreter that .venv is made with (3.11 or newer)
#   TORCH_INDEX=URL        where torch comes from, e.g. https://download.pytorch.org/whl/cpu to leave CUDA out
#   FLASH_ATTN=1           make install-cuda builds flash-attn too (about 20 minutes on 16 cores)
PYTHON ?= python3
TORCH_INDEX ?=
FLASH_ATTN ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)
# Each test process gets one thread; pytest-xdist uses the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo demo-full install install-triton install-cuda test test-slow test-gpu test-slurm soak parity lint types check bench clean

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

# mamba-ssm without its CUDA parts is pure Python: Triton kernels, compiled when first called on a GPU, or interpreted.
# No build isolation, for its build imports torch; no dependencies, for they clash with others and Mamba-2 uses none.
NO_DEPS := $(PIP) install --quiet --constraint constraints.txt --no-deps --no-build-isolation
TRITON_SCAN := $(PIP) install --quiet --constraint constraints.txt triton einops && \
	MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(NO_DEPS) mamba-ssm

.venv/ready-triton: .venv/ready-dev
	$(TRITON_SCAN)
	@touch $@

install-triton: .venv/ready-triton  ## mamba-ssm's Triton scan, which the slow tests interpret on the CPU (Linux)

# What exec.kernels=fused needs is the scan; the rest is taken where it is. PyTorch brings FlexAttention.
install-cuda: .venv/ready  ## the kernels of exec.kernels=fused, on a machine with CUDA (FLASH_ATTN=1: flash-attn too)
	$(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None and "this torch has no CUDA: remove .venv, and leave TORCH_INDEX out")'
	$(TRITON_SCAN)
	@if command -v nvcc >/dev/null; then $(PIP) install --quiet --constraint constraints.txt ninja && $(NO_DEPS) causal-conv1d; \
		else echo 'no nvcc on the PATH: causal-conv1d is left out, and the short convolution stays with PyTorch'; fi
	$(if $(FLASH_ATTN),$(NO_DEPS) flash-attn)

demo: .venv/ready  ## train the demo sweep (minutes the first time), print its table, write out/demo
	$(BIN)/python run.py -m +sweep=demo
	$(BIN)/python -m analysis tables demo --out out/demo

demo-full: .venv/ready  ## the demo with more seeds and more steps
	$(BIN)/python run.py -m +sweep=demo_full
	$(BIN)/python -m analysis tables demo_full --out out/demo_full

test: .venv/ready-dev  ## the tests, but for the slow ones and those that need a GPU or Slurm
	$(BIN)/python -m pytest -n auto -m 'not slow and not gpu and not slurm'

# Triton has wheels for Linux alone; there, that its tests are skipped is a failure.
TRITON := $(if $(filter Linux,$(shell uname -s)),.venv/ready-triton)
test-slow: .venv/ready-dev $(TRITON)  ## the slow tests
	$(if $(TRITON),HYBRID_REQUIRE_TRITON=1) $(BIN)/python -m pytest -n auto -m 'slow and not gpu and not slurm'

test-gpu: .venv/ready-dev  ## the tests that need a CUDA device, with the kernels that are installed
	$(BIN)/python -m pytest -m gpu tests/gpu

# They wait more than they work; the cluster's faults take turns. Compiled files: hundreds of short processes. REQUIRE_SLURM=1: no Slurm is a failure, not a skip.
test-slurm: .venv/ready-dev  ## the tests on a real Slurm cluster, installed (Debian 12), brought up and taken down here
	env -u PYTHONDONTWRITEBYTECODE HYBRID_SLURM_INSTALL=1 $(BIN)/python -m pytest -n 4 -m slurm tests/slurm

soak: .venv/ready-dev  ## 200 runs on such a cluster, under random kills, preemptions, requeues and crashes
	$(BIN)/python tests/slurm/soak.py --runs 200

parity: .venv/ready-dev  ## largest differences from other people's code, as a table
	$(BIN)/python -m pytest -q -m 'not gpu' tests/oracle

lint: .venv/ready-dev  ## ruff: format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/ready-dev  ## mypy, strict
	$(BIN)/mypy
	$(BIN)/mypy tests/slurm

check: lint types test test-slow  ## what a change must pass

bench: .venv/ready-dev  ## planning and kernels, each against a peer in one interleaved run
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/mixers_cpu.py
	$(BIN)/python benchmarks/mamba2_cpu.py

clean:  ## remove what the tools left behind; never the store
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis out

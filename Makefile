# Every target sets up what it needs, once. `make help` lists them.
PYTHON   ?= python3
VENV     := .venv
BIN      := $(VENV)/bin
# A second environment: another torch (2.11.0, a CUDA build) for the one built library, and what the CUDA library links to.
CUDA_BIN := .venv-cuda/bin
# A third without torch, for what runs without it.
RUNTIME_BIN := .venv-runtime/bin
NATIVE   := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help demo compare test sanitize fuzz huge-test mutants lint format cuda-test wheel-test runtime-test clean

help: ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(VENV)/.installed: requirements.txt requirements-compat.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r requirements-compat.txt
	@touch $@

$(VENV)/.ready: $(VENV)/.installed pyproject.toml setup.py $(NATIVE)
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(CUDA_BIN)/.ready: requirements-cuda.txt requirements-compat.txt
	$(PYTHON) -m venv .venv-cuda
	$(CUDA_BIN)/pip install -q --disable-pip-version-check -r requirements-cuda.txt
	$(CUDA_BIN)/pip install -q --disable-pip-version-check --no-deps -r requirements-compat.txt
	@touch $@

$(RUNTIME_BIN)/.ready: requirements-runtime.txt
	$(PYTHON) -m venv .venv-runtime
	$(RUNTIME_BIN)/pip install -q --disable-pip-version-check -r requirements-runtime.txt
	@touch $@

SIDE_BY_SIDE := -n logical --maxprocesses 4

RECIPE   ?= lsq
demo: $(VENV)/.ready ## train a low-bit network on handwritten digits, convert it to integers, compare (3 minutes; RECIPE=qil: another)
	$(BIN)/python -m fastq demo --recipe $(RECIPE)

compare: $(VENV)/.ready ## hold the papers' claims against each other on digits, rewrite the README's table (20 minutes; resumable)
	$(BIN)/python -m fastq compare
	$(BIN)/python -m benchmarks.compare
	$(BIN)/python -m benchmarks.readme

test: $(VENV)/.ready ## prove it: the whole test suite
	$(BIN)/python -m pytest -m "not cuda_compile and not huge and not sanitize" $(SIDE_BY_SIDE) --dist loadfile --no-loadscope-reorder $(PYTEST)

sanitize: $(VENV)/.ready ## the C++ tests under the address and undefined behaviour sanitizers
	$(BIN)/python -m pytest -m sanitize $(SIDE_BY_SIDE) tests/native

fuzz: $(VENV)/.ready ## a hundred thousand broken files to the runtime's loader under the sanitizers (3 minutes)
	$(BIN)/python tests/runtime/fuzz.py --sanitize

huge-test: $(VENV)/.ready ## tensors of more than 2**31 elements (13 GB of memory)
	$(BIN)/python -m pytest -m huge tests

mutants: $(VENV)/.ready ## seed faults in the kernels and the package, each of which the tests must find (MUTANTS=--changed: what has to be run again)
	$(BIN)/python .ci/mutants.py $(MUTANTS)

lint: $(VENV)/.ready ## format, lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)
	$(BIN)/mypy

format: $(VENV)/.ready ## sort imports, lay out the Python and C++ code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

# The two architectures that differ most: the tests look at what the library has for them. The wheel takes the objects that cuda-test
# leaves.
cuda-test wheel-test: export TORCH_CUDA_ARCH_LIST ?= 8.0;9.0a

cuda-test: $(VENV)/.ready $(CUDA_BIN)/.ready ## compile every CUDA and Triton kernel, look at its instructions, link and load the library (needs nvcc)
	FASTQ_REQUIRE_CUDA=1 FASTQ_CUDA_PYTHON=$(CURDIR)/$(CUDA_BIN)/python $(BIN)/python -m pytest -m cuda_compile $(SIDE_BY_SIDE) --dist worksteal tests/cuda tests/triton

wheel-test: $(VENV)/.ready $(CUDA_BIN)/.ready ## build the wheel, run its tests elsewhere under a second torch
	.ci/wheel $(BIN)/python $(CUDA_BIN)/python $(SIDE_BY_SIDE) --dist loadfile --no-loadscope-reorder

runtime-test: $(RUNTIME_BIN)/.ready ## build and install fastq without torch, run the runtime's tests there, time its import
	.ci/runtime $(RUNTIME_BIN)/python

include benchmarks/gpu.mk

clean: ## remove what was built (not the environments)
	rm -rf build dist fastq/lib fastq/_runtime*.so *.egg-info $(VENV)/.ready

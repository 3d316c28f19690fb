# Benchmarks and everything that needs a GPU. Included by the Makefile.
#   DRY=1       every GPU stage without a GPU: CPU kernels, Triton's interpreter, small sizes
#   WHEELS=dir  wheels to install first, on a machine without a network
#   GPU_PYTHON  the Python with a CUDA torch (default: the first python3; dry: the environment of `make test`)
#   BENCH=...   options of `python -m benchmarks`, such as BENCH=--quick
.PHONY: bench bench-compat bench-plot gpu gpu-test gpu-sanitize gpu-bench

ifdef DRY
GPU_PYTHON ?= $(BIN)/python
GPU_READY  := $(VENV)/.ready
else
GPU_PYTHON ?= python3
GPU_READY  :=
endif
GPU_RUN = $(GPU_PYTHON) -m benchmarks.gpu $(if $(DRY),--dry) $(if $(WHEELS),--wheels $(WHEELS))

bench: $(VENV)/.ready ## measure on this CPU, check the goals, rewrite the README's table (9 minutes; BENCH=--quick: seconds)
	$(BIN)/python -m benchmarks $(BENCH)
	$(BIN)/python -m benchmarks.readme

bench-compat: $(VENV)/.ready ## measure the drop-ins against the libraries they stand in for, rewrite MIGRATING.md's table (2 minutes)
	$(BIN)/python -m benchmarks.compat $(BENCH)

bench-plot: $(VENV)/.ready ## draw the plots again and regenerate the README's table and PENDING.md, without measuring
	$(BIN)/python -m benchmarks.readme --plots

gpu: $(GPU_READY) ## environment, build, tests, sanitizers and benchmarks on an NVIDIA GPU; run again to resume (DRY=1: without one)
	$(GPU_RUN)

gpu-test: $(GPU_READY) ## the tests on the GPU, on both backends (at most 10 minutes, resumable)
	$(GPU_RUN) environment build test

gpu-sanitize: $(GPU_READY) ## compute-sanitizer's four tools on a reduced set (at most 10 minutes, resumable)
	$(GPU_RUN) sanitize

gpu-bench: $(GPU_READY) ## the benchmarks on the GPU (at most 10 minutes, resumable)
	$(GPU_RUN) bench

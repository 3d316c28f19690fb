# Benchmarks and everything that needs a GPU. Included by the Makefile.
#   DRY=1       every GPU stage without a GPU: CPU kernels, Triton's interpreter, small sizes
#   WHEELS=dir  wheels to install first, on a machine without a network
#   GPU_PYTHON  the Python with a CUDA torch (default: the first python3; dry: the environment of `make test`)
#   BENCH=...   options of `python -m benchmarks`, such as BENCH=--quick
.PHONY: bench bench-integer bench-compat bench-training bench-plot gpu gpu-test gpu-sanitize gpu-bench gpu-integer gpu-training

ifdef DRY
GPU_PYTHON ?= $(BIN)/python
GPU_READY  := $(VENV)/.ready
else
GPU_PYTHON ?= python3
GPU_READY  :=
endif
GPU_RUN = $(GPU_PYTHON) -m benchmarks.gpu $(if $(DRY),--dry) $(if $(WHEELS),--wheels $(WHEELS))

# The peers that are no requirement of anything else; OpenVINO, the largest, is for this alone.
$(VENV)/.peers: $(VENV)/.ready requirements-peers.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r requirements-peers.txt
	@touch $@

bench: $(VENV)/.peers ## measure on this CPU, check the goals, rewrite the README's table (15 minutes; BENCH=--quick: a minute)
	$(BIN)/python -m benchmarks $(BENCH)
	$(BIN)/python -m benchmarks.readme

bench-integer: $(VENV)/.peers ## of these the integer products alone (5 minutes)
	$(BIN)/python -m benchmarks --suite integer $(BENCH)
	$(BIN)/python -m benchmarks.readme

bench-compat: $(VENV)/.ready ## measure the drop-ins against the libraries they stand in for, rewrite MIGRATING.md's table (2 minutes)
	$(BIN)/python -m benchmarks.compat $(BENCH)

bench-training: $(VENV)/.ready ## measure a training step in full precision, fake-quantized and in integers (1 minute)
	$(BIN)/python -m benchmarks.training $(BENCH)
	$(BIN)/python -m benchmarks.readme

bench-plot: $(VENV)/.ready ## draw the plots again and regenerate the README's table and PENDING.md, without measuring
	$(BIN)/python -m benchmarks.readme --plots

gpu: $(GPU_READY) ## environment, build, tests, sanitizers and benchmarks on an NVIDIA GPU; run again to resume (DRY=1: without one)
	$(GPU_RUN)

gpu-test: $(GPU_READY) ## the tests on the GPU, on both backends (at most 10 minutes, resumable)
	$(GPU_RUN) environment build test

gpu-sanitize: $(GPU_READY) ## compute-sanitizer's four tools on a reduced set (at most 10 minutes, resumable)
	$(GPU_RUN) sanitize

gpu-bench: $(GPU_READY) ## the benchmarks of the quantizers on the GPU (at most 10 minutes, resumable)
	$(GPU_RUN) bench

gpu-integer: $(GPU_READY) ## the benchmarks of the integer products on the GPU (at most 10 minutes, resumable)
	$(GPU_RUN) integer

gpu-training: $(GPU_READY) ## training steps on the GPU (minutes, resumable)
	$(GPU_RUN) training

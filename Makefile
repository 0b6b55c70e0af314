# Two commands matter: `make demo` (raw text to a scored chat model, here, on a CPU) and `make test`.
.DEFAULT_GOAL := help
PYTEST := .venv/bin/python -m pytest -q

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: envs  ## raw text -> scored chat model: runs/poetry-tiny/report.html
	.venv/bin/myllm run poetry-tiny

test: envs  ## every test, a shortened run of the whole pipeline among them
	$(PYTEST)

test-fast: env-train  ## the tests that take seconds
	$(PYTEST) -m "not slow"

check: env-train  ## lint, format, types
	.venv/bin/ruff check .
	.venv/bin/mypy

bench-converters: env-train  ## conversion of a random qwen2-1.5b against cp: seconds and peak memory (30 GB of disk)
	.venv/bin/python -m benchmarks.converters

bench-preprocess: env-train  ## corpus steps, tokenizer and binning against their peers (about 20 minutes)
	.venv/bin/python -m benchmarks.preprocess --output benchmarks/preprocess.md
	.venv/bin/python -m benchmarks.preprocess_tokens | tee benchmarks/preprocess_tokens.md

bench-pretrain: env-train  ## launcher against bare Megatron, SDPA against unfused attention: benchmarks/pretrain.md
	.venv/bin/python -m benchmarks.pretrain

bench-gpu: env-train  ## tokens/s, MFU, memory of 0.5B and 1.1B on a GPU: benchmarks/gpu.md
	.venv/bin/python -m benchmarks.gpu

envs: env-train env-eval env-serve  ## all environments (about 6 GB)

env-train env-eval env-serve env-lmeval env-gpu env-gpu-te:  ## one environment (gpu: .venv for NVIDIA GPUs, Python 3.12)
	@environments/create.sh $(@:env-%=%)

lock: env-train  ## resolve the lock files anew from environments/*.in
	@environments/lock.sh

clean:  ## remove environments and built wheels; runs stay
	rm -rf .venv .venv-eval .venv-serve .venv-lmeval .tools .wheels

.PHONY: help demo test test-fast check bench-converters bench-preprocess bench-pretrain bench-gpu envs env-train env-eval env-serve env-lmeval env-gpu \
	env-gpu-te lock clean

# Two commands matter: `make demo` (raw text to a scored chat model, here, on a CPU) and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash -o pipefail
# a worker per core, four at most; a file's tests run in one worker, which makes the file's fixtures once
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q
SPREAD := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: envs  ## raw text -> scored chat model: runs/poetry-tiny/report.html
	.venv/bin/myllm run poetry-tiny

test: envs env-clients env-lmdeploy  ## every test but Slurm's, a shortened run of the whole pipeline among them
	$(PYTEST) $(SPREAD) -m "not slurm"

test-fast: env-train  ## the tests that take seconds
	$(PYTEST) $(SPREAD) -m "not slow and not slurm"

test-slurm: envs  ## the tests on a throw-away Slurm (as root it installs Slurm's packages)
	@tests/slurm/install_slurm.sh
	$(PYTEST) -m slurm

check: env-train  ## lint, types, and which room may import which
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	.venv/bin/mypy

bench-converters: env-train  ## conversion of a random qwen2-1.5b against cp: seconds and peak memory (30 GB of disk)
	.venv/bin/python -m benchmarks.converters

bench-preprocess: env-train  ## corpus steps, tokenizer and binning against their peers (about 20 minutes)
	.venv/bin/python -m benchmarks.preprocess --output benchmarks/preprocess.md
	.venv/bin/python -m benchmarks.preprocess_tokens | tee -a benchmarks/preprocess.md

bench-pretrain: env-train  ## launcher against bare Megatron, SDPA against unfused attention: benchmarks/pretrain.md
	.venv/bin/python -m benchmarks.pretrain

bench-serve: envs  ## 32 clients for a minute against the demo's model, made if it is not there: benchmarks/serve.md
	.venv/bin/myllm run poetry-tiny --to dpo
	.venv/bin/python -m benchmarks.serve --output benchmarks/serve.md

# PYTHON=python3 EXTRA=.proof-gpu for a machine without network whose own Python has CUDA's torch; SKIP="part part"
proof-gpu: $(if $(PYTHON),,env-train)  ## what one GPU shows that a CPU cannot, in 8 minutes: benchmarks/gpu.md (HARDWARE=cpu OUTPUT=folder tries it)
	$(or $(PYTHON),.venv/bin/python) -m benchmarks.gpu_proof --hardware $(or $(HARDWARE),gpu) \
		$(if $(EXTRA),--extra $(EXTRA)) $(if $(OUTPUT),--output $(OUTPUT)) $(SKIP:%=--skip %)

proof-gpu-wheels: env-train  ## .proof-gpu: the wheels and data that a GPU machine without network must be brought (40 MB)
	.venv/bin/myllm run poetry-tiny --to tasks
	.venv/bin/python -m benchmarks.gpu_proof.wheels

results: envs  ## every post-training stage with three seeds, on a finished demo: docs/results-poetry-tiny.md
	.venv/bin/python -m examples.poetry.results

test-slow: envs  ## the slow tests alone: every stage of training, serving and scoring on the CPU
	$(PYTEST) $(SPREAD) -m "slow and not slurm"

envs: env-train env-eval env-serve env-ppo  ## all environments (about 6 GB)

env-train env-eval env-clients env-ppo env-lmeval env-gpu env-gpu-te:  ## one environment (gpu: .venv for NVIDIA GPUs, Python 3.12)
	@environments/create.sh $(@:env-%=%)

env-serve env-lmdeploy:  ## vLLM, LMDeploy: with CUDA where there is a GPU, else for a CPU (LMDeploy: what can be checked on one)
	@environments/create.sh $(@:env-%=%)$(if $(wildcard /dev/nvidiactl),-gpu)

lock: env-train  ## resolve the lock files anew from environments/*.in
	@environments/lock.sh

clean:  ## remove environments and built wheels; runs stay
	rm -rf .venv .venv-eval .venv-serve .venv-ppo .venv-lmeval .venv-clients .venv-lmdeploy .tools .wheels

.PHONY: help demo test test-fast test-slow test-slurm check results bench-converters bench-preprocess bench-pretrain bench-serve proof-gpu proof-gpu-wheels \
	envs env-train env-eval env-serve env-clients env-ppo env-lmeval env-gpu env-gpu-te env-lmdeploy lock clean

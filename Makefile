# Start with `make demo` (from raw text to a scored chat model, on a CPU). `make test` runs the tests.
.DEFAULT_GOAL := help
SHELL := /bin/bash -o pipefail
# a worker per core, four at most; a file's tests run in one worker, which makes the file's fixtures once
WORKERS ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc); echo $$((n < 4 ? n : 4)))
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q
SPREAD := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

help:  ## print this list
	@grep -hE '^[a-z -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: envs  ## run the demo, from raw text to a scored chat model: runs/poetry-tiny/report.html
	.venv/bin/myllm run poetry-tiny

test: envs env-clients env-lmdeploy  ## run all tests except Slurm's, including a shortened run of the whole pipeline
	$(PYTEST) $(SPREAD) -m "not slurm"

test-fast: env-train  ## run the fast tests
	$(PYTEST) $(SPREAD) -m "not slow and not slurm"

test-slurm: envs  ## run the Slurm tests on a temporary local cluster (as root, installs Slurm's packages)
	@tests/slurm/install_slurm.sh
	$(PYTEST) -m slurm

check: env-train  ## check lint, types, and the allowed imports between packages
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	.venv/bin/mypy

bench-converters: env-train  ## benchmark conversion of a random qwen2-1.5b against cp: time and peak memory (30 GB of disk)
	.venv/bin/python -m benchmarks.converters

bench-preprocess: env-train  ## benchmark corpus steps, tokenizer and binning against their peers (about 20 minutes)
	.venv/bin/python -m benchmarks.preprocess --output benchmarks/preprocess.md
	.venv/bin/python -m benchmarks.preprocess_tokens | tee -a benchmarks/preprocess.md

bench-pretrain: env-train  ## benchmark the launcher against bare Megatron, SDPA against unfused attention: benchmarks/pretrain.md
	.venv/bin/python -m benchmarks.pretrain

bench-serve: envs  ## load test with 32 clients for a minute on the demo's model (made if missing): benchmarks/serve.md
	.venv/bin/myllm run poetry-tiny --to dpo
	.venv/bin/python -m benchmarks.serve --output benchmarks/serve.md

# PYTHON=python3 EXTRA=.proof-gpu for a machine without a network whose Python has torch for CUDA; SKIP="part part"
proof-gpu: $(if $(PYTHON),,env-train)  ## run checks and measurements on one GPU, 8 minutes: benchmarks/gpu.md (to test it: HARDWARE=cpu OUTPUT=folder)
	$(or $(PYTHON),.venv/bin/python) -m benchmarks.gpu_proof --hardware $(or $(HARDWARE),gpu) \
		$(if $(EXTRA),--extra $(EXTRA)) $(if $(OUTPUT),--output $(OUTPUT)) $(SKIP:%=--skip %)

proof-gpu-wheels: env-train  ## make .proof-gpu, wheels and data for proof-gpu on a machine without a network (40 MB)
	.venv/bin/myllm run poetry-tiny --to tasks
	.venv/bin/python -m benchmarks.gpu_proof.wheels

doctor:  ## look at this machine: what is wrong with it, and the command that mends it
	@for python in python3 python3.11 python3.12 python3.13 .venv/bin/python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then exec $$python -m launch.doctor; fi; \
	done; echo "error: no Python of version 3.10 or newer is installed: apt-get install python3.11" >&2; exit 2

proof-size: envs  ## take the published shapes of 0.5B and 1.1B through every stage on a CPU, 45 minutes: benchmarks/size.md
	.venv/bin/python -m benchmarks.size

results: envs  ## run every post-training stage with three seeds on a finished demo: docs/results-poetry-tiny.md
	.venv/bin/python -m examples.poetry.results

test-slow: envs  ## run only the slow tests: every stage of training, serving and scoring on the CPU
	$(PYTEST) $(SPREAD) -m "slow and not slurm"

# GPU=yes takes the lock files for NVIDIA GPUs where there is none (a login node), GPU=no those for a CPU; PYTHON=python3.12
# names the Python, PYTHON=uv lets uv download one
envs:  ## create the environments for training, evaluation, serving and PPO: for NVIDIA GPUs if there is one (or GPU=yes), else for a CPU
	@environments/create.sh train eval serve ppo

env-train env-eval env-serve env-ppo env-clients env-lmdeploy env-lmeval env-gpu env-gpu-te:  ## create one environment (gpu, gpu-te: .venv for NVIDIA GPUs)
	@environments/create.sh $(@:env-%=%)

lock: env-train  ## resolve environments/*.in into new lock files
	@environments/lock.sh

clean:  ## remove environments and built wheels; runs stay
	rm -rf .venv .venv-eval .venv-serve .venv-ppo .venv-lmeval .venv-clients .venv-lmdeploy .tools .wheels

.PHONY: help demo test test-fast test-slow test-slurm check results bench-converters bench-preprocess bench-pretrain bench-serve proof-gpu proof-gpu-wheels proof-size doctor \
	envs env-train env-eval env-serve env-clients env-ppo env-lmeval env-gpu env-gpu-te env-lmdeploy lock clean

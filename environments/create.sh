#!/usr/bin/env bash
# Create one environment from its lock file: environments/create.sh train|eval|serve|serve-gpu|clients|lmdeploy|lmdeploy-gpu|ppo|gpu|gpu-te
#
# uv installs; wheels that no registry offers for Python 3.11 on a CPU are built once into .wheels/: megatron-core
# (its newest release asks for 3.12 by name only) and the stand-ins in stubs/. Safe to repeat and to interrupt: the
# environment counts as made when its stamp equals the lock file.
#
# gpu and gpu-te are the training environment of a machine with NVIDIA GPUs (Python 3.12, CUDA's builds): they too are
# .venv, and `train` leaves such a one as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?usage: environments/create.sh train|eval|serve|serve-gpu|clients|lmdeploy|lmdeploy-gpu|ppo|gpu|gpu-te}
lock=environments/$name.lock
[ -f "$lock" ] || { echo "error: there is no $lock; there are: $(cd environments && echo *.lock)" >&2; exit 2; }
case $name in train | gpu | gpu-te) folder=.venv ;; serve* | lmdeploy*) folder=.venv-${name%-gpu} ;; *) folder=.venv-$name ;; esac
case $name in *gpu*) python=${PYTHON:-python3.12} ;; *) python=${PYTHON:-python3.11} ;; esac
megatron="megatron-core==0.19.2"

stamp() { echo "$1 $(cat "environments/$1.lock" environments/create.sh environments/stubs/*/* | sha256sum)"; }
wanted=$(stamp "$name")
found=$(cat "$folder/.stamp" 2>/dev/null || true)
if [ "$found" = "$wanted" ]; then exit 0; fi
case "$name $found" in
  "train gpu"*)
    if [ "$found" = "$(stamp "${found%% *}")" ]; then exit 0; fi
    echo "error: .venv is ${found%% *}'s and its lock file has changed: run make env-${found%% *}, or remove .venv" >&2
    exit 2 ;;
esac
if [ "$name" = gpu-te ] && ! command -v nvcc >/dev/null; then
  echo "error: nvcc is not installed: Transformer Engine is built with CUDA 13's" >&2; exit 2
fi
start=$SECONDS

if [ "$name" = ppo ]; then # packages laid over .venv by PYTHONPATH, no environment of their own
  [ -x .tools/bin/uv ] && [ -x .venv/bin/python ] || environments/create.sh train
  export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
  rm -rf "$folder" "$folder.partial"
  .tools/bin/uv pip install -q --python .venv/bin/python --no-deps --target "$folder.partial" -r "$lock"
  rm -rf "$folder.partial/tests" "$folder.partial/bin" # trl 0.9.6 ships a package of that name
  echo "$wanted" > "$folder.partial/.stamp"
  mv "$folder.partial" "$folder"
  echo "== $folder: $((SECONDS - start)) s, $(du -sh "$folder" | cut -f1)"
  exit 0
fi

command -v "$python" >/dev/null || { echo "error: $python is not installed; set PYTHON to one" >&2; exit 2; }
command -v g++ >/dev/null || { echo "error: g++ is not installed: apt-get install g++" >&2; exit 2; }
if [ ! -x .tools/bin/uv ]; then
  echo "== tools: uv, and what builds wheels"
  rm -rf .tools
  "$python" -m venv .tools
  .tools/bin/python -m pip install -q --disable-pip-version-check -r environments/tools.txt
fi

mkdir -p .wheels
pip_wheel() { .tools/bin/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w .wheels "$@"; }
build_stub() { # NAME: build a copy, so that nothing is left beside the source
  ls .wheels/"$1"-*.whl >/dev/null 2>&1 && return
  local copy; copy=$(mktemp -d)
  cp -r "environments/stubs/$1/." "$copy"
  pip_wheel "$copy"; rm -rf "$copy"
}
build_stub torchaudio
build_stub vllm
if [ "$name" = train ] && ! ls .wheels/megatron_core-*.whl >/dev/null 2>&1; then
  echo "== building $megatron (g++, about 20 s)"
  source=$(mktemp -d)
  .tools/bin/python -m pip download -q --disable-pip-version-check --no-deps --no-binary=:all: --no-build-isolation \
    --ignore-requires-python -d "$source" "$megatron"
  pip_wheel --ignore-requires-python "$source"/*.tar.gz
  rm -rf "$source"
fi

echo "== $folder from $lock"
# A folder of wheels that pip is told of may hold the CPU build of torch; otherwise uv takes PyTorch's own CPU index.
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
backend=()
case $name in
  *gpu*) links= ;;
  *) if [ -z "$links" ]; then backend=(--torch-backend cpu); fi ;;
esac
# compiled once here, or every start of a tool compiles thousands of files anew where byte code may not be written
export UV_COMPILE_BYTECODE=1
export UV_FIND_LINKS=.wheels${links:+,${links// /,}}
case $name in *-gpu) UV_FIND_LINKS= ;; esac  # the stand-ins are for a CPU
rm -rf "$folder"
.tools/bin/uv venv -q --python "$python" "$folder"
isolation=()
if [ "$name" = gpu-te ]; then
  # built against the torch that is installed first
  grep -v '^transformer-engine-torch' "$lock" > "$folder/first.txt"
  .tools/bin/uv pip install -q --python "$folder/bin/python" --no-deps -r "$folder/first.txt"
  isolation=(--no-build-isolation)
fi
.tools/bin/uv pip install -q --python "$folder/bin/python" --no-deps "${backend[@]}" "${isolation[@]}" -r "$lock"
if [ "$name" = train ]; then
  .tools/bin/python -m pip --python "$folder/bin/python" install -q --disable-pip-version-check --no-deps \
    --ignore-requires-python .wheels/megatron_core-*.whl
fi
if [ "$folder" = .venv ]; then
  .tools/bin/uv pip install -q --python "$folder/bin/python" --no-deps --no-build-isolation -e .
fi
echo "$wanted" > "$folder/.stamp"
echo "== $folder: $((SECONDS - start)) s, $(du -sh "$folder" | cut -f1)"

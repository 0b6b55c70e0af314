#!/usr/bin/env bash
# Create environments from their lock files: environments/create.sh [--dry-run | --stamp] NAME...
#
#   NAME       train, eval, serve, ppo, clients, lmdeploy or lmeval; or a lock file's own name: gpu, gpu-te, eval-gpu, ...
#   GPU        yes or no: whether a NAME means its lock file for NVIDIA GPUs; unless it is set: if the machine has one
#   PYTHON     a Python, or `uv` to let uv download one; unless it is set: the first of those that the lock file fits
#   --dry-run  only the plan: what would be made, its size and time
#   --stamp    only the stamp of a lock file
#
# uv installs. What no registry offers is built once into .wheels/: megatron-core for Python 3.11 (its newest release
# asks for 3.12 by name only) and the stand-ins in stubs/. Safe to repeat and to interrupt: an environment counts as made
# when its stamp equals the lock file and this program.
set -euo pipefail
cd "$(dirname "$0")/.."
megatron="megatron-core==0.19.2"

fail() { echo "error: $*" >&2; exit 2; }

folder_of() { # NAME or LOCK
  case $1 in train | gpu | gpu-te) echo .venv ;; *) echo ".venv-${1%-gpu}" ;; esac
}

found_in() { cat "$1/.stamp" 2>/dev/null || true; } # FOLDER: its stamp: lock file, hash, Python

lock_of() { # NAME: its lock file. A folder for GPUs stays one (a cluster's login node has none), unless GPU=no is said.
  local gpu=$1-gpu found
  [ "$1" != train ] || gpu=gpu
  found=$(found_in "$(folder_of "$1")")
  if [ ! -f "environments/$gpu.lock" ] || [ "${GPU:-}" = no ]; then echo "$1"
  elif [[ ${found%% *} = *gpu* ]]; then echo "${found%% *}"
  elif [ "${GPU:-}" = yes ] || [ -e /dev/nvidiactl ]; then echo "$gpu"
  else echo "$1"; fi
}

stamp() { echo "$1 $(cat "environments/$1.lock" environments/create.sh environments/stubs/*/* | sha256sum | cut -c1-32)"; }

base_of() { # COMMAND: the Python itself, if it can make environments. An active environment's, or pyenv's name for it, is not it.
  "$1" -c 'import ensurepip, sys, venv; print(getattr(sys, "_base_executable", sys.executable))' 2>/dev/null
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

made() { # LOCK: whether its folder is what it says, with the Python that was asked for
  local found; found=$(found_in "$(folder_of "$1")")
  [[ $found = "$(stamp "$1")"* ]] || return 1
  case ${PYTHON:-} in "" | uv) ;; *) [ "${found##* }" = "$(version_of "$PYTHON")" ] || [ "$1" = ppo ] ;; esac
}

gigabytes() { echo "$(($1 / 1000)).$(($1 % 1000 / 100)) GB"; } # MEGABYTES

sizes() { awk -v lock="$1" '$1 == lock { print $2, $3 }' environments/sizes.txt; } # LOCK: megabytes, seconds

plan() { # LOCK...: say what will be made and what it takes
  local lock megabytes seconds all_megabytes=0 all_seconds=0 free
  for lock; do
    if made "$lock"; then
      printf '  %-15s %-18s made already\n' "$(folder_of "$lock")" "$lock.lock"
    else
      read -r megabytes seconds < <(sizes "$lock")
      all_megabytes=$((all_megabytes + megabytes)) all_seconds=$((all_seconds + seconds))
      printf '  %-15s %-18s %8s %6s s\n' "$(folder_of "$lock")" "$lock.lock" "$(gigabytes "$megabytes")" "$seconds"
    fi
  done
  free=$(df -m --output=avail . | tail -1)
  echo "To make: $(gigabytes "$all_megabytes") on the disk ($(gigabytes "$free") are free), about $(((all_seconds + 59) / 60))" \
    "min with the packages in uv's cache; downloads come on top"
  if [ "$all_megabytes" -gt "$free" ]; then echo "warning: the disk may be too small" >&2; fi
}

if [ "${1:-}" = --stamp ]; then stamp "$2"; exit 0; fi
dry=
if [ "${1:-}" = --dry-run ]; then dry=yes; shift; fi
[ $# -gt 0 ] || fail "which one? environments/create.sh NAME..., NAME being one of: $(cd environments && echo *.lock | sed 's/\.lock//g')"
case ${GPU:-} in yes | no | "") ;; *) fail "GPU is $GPU: say GPU=yes or GPU=no" ;; esac
locks=() missing=()
for name; do
  [ -f "environments/$name.lock" ] || fail "there is no environments/$name.lock; there are: $(cd environments && echo *.lock)"
  locks+=("$(lock_of "$name")")
  made "${locks[-1]}" || missing+=("${locks[-1]}")
done
if [ -n "$dry" ]; then plan "${locks[@]}"; exit 0; fi
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi
if [ $# -gt 1 ]; then
  plan "${locks[@]}"
  for lock in "${missing[@]}"; do
    count=$((${count:-0} + 1))
    echo "== $count of ${#missing[@]}: $(folder_of "$lock")"
    environments/create.sh "$lock"
  done
  exit 0
fi

# one environment

lock=${locks[0]} file=environments/${locks[0]}.lock folder=$(folder_of "${locks[0]}") start=$SECONDS
wanted=$(stamp "$lock")
case $lock in # of eval.lock, tree-sitter-languages has no wheel for 3.13; README.md says which were tried
  *gpu*) versions="3.12" ;;
  train | serve | clients) versions="3.11 3.12 3.13" ;;
  *) versions="3.11 3.12" ;;
esac
read -r _ usual < <(sizes "$lock")

report() { while sleep 30 && kill -0 $$ 2>/dev/null; do echo "   $folder: $((SECONDS - start)) s (about $usual s when nothing is downloaded)"; done; }

tools() { # make .tools with PYTHON: uv, and what builds wheels
  if [ -x .tools/bin/uv ]; then return; fi
  echo "== tools: uv, and what builds wheels"
  rm -rf .tools
  "$1" -m venv .tools
  .tools/bin/python -m pip install -q --disable-pip-version-check -r environments/tools.txt
}

find_python() { # set `python`: PYTHON, uv's own, or the first of the versions that is installed
  local version
  case ${PYTHON:-} in
    "")
      for version in $versions; do
        if python=$(base_of "python$version"); then return; fi
      done
      fail "no Python of ${versions// / or } is installed with venv. Install one (apt-get install python3-venv python3-dev:" \
        "3.11 on Debian 12, 3.12 on Ubuntu 24.04), name one (make … PYTHON=/path/to/python), or let uv download 3.12" \
        "(make … PYTHON=uv)" ;;
    uv)
      python=$(base_of python3) || fail "PYTHON=uv needs a python3 with venv to install uv: apt-get install python3-venv"
      tools "$python"
      .tools/bin/uv python install 3.12
      python=$(.tools/bin/uv python find --managed-python 3.12) ;;
    *) python=$(base_of "$PYTHON") || fail "PYTHON is $PYTHON, which is not a Python with venv" ;;
  esac
}

if [ "$lock" = ppo ]; then # packages laid over .venv by PYTHONPATH, no environment of their own
  [ -x .tools/bin/uv ] && [ -x .venv/bin/python ] || environments/create.sh train
  export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
  rm -rf "$folder" "$folder.partial"
  .tools/bin/uv pip install -q --python .venv/bin/python --no-deps --target "$folder.partial" -r "$file"
  rm -rf "$folder.partial/tests" "$folder.partial/bin" # trl 0.9.6 ships a package of that name
  echo "$wanted" > "$folder.partial/.stamp"
  mv "$folder.partial" "$folder"
  echo "== $folder: $((SECONDS - start)) s, $(du -sh "$folder" | cut -f1)"
  exit 0
fi

if [ "$lock" = gpu-te ] && ! command -v nvcc >/dev/null; then
  fail "nvcc is not installed: Transformer Engine is built with CUDA 13's"
fi
command -v g++ >/dev/null || fail "g++ is not installed: apt-get install g++"
find_python
version=$(version_of "$python")
tools "$python"

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
if [ "$lock" = train ] && [ "$version" = 3.11 ] && ! ls .wheels/megatron_core-*-cp311-*.whl >/dev/null 2>&1; then
  echo "== building $megatron (g++, about 20 s)"
  source=$(mktemp -d)
  .tools/bin/python -m pip download -q --disable-pip-version-check --no-deps --no-binary=:all: --no-build-isolation \
    --ignore-requires-python -d "$source" "$megatron"
  # NO_VCS_VERSION: or Megatron's build adds the commit of the repository around it, this one, to its version
  NO_VCS_VERSION=1 .tools/bin/uv build -q --wheel --python "$python" --build-constraints environments/tools.txt \
    -o "$source/built" "$source"/*.tar.gz
  mv "$source"/built/*.whl .wheels # only now: what a build leaves that failed is no wheel to install
  rm -rf "$source"
fi

echo "== $folder from $file, Python $version"
report & reporter=$!
trap 'kill "$reporter" 2>/dev/null || true' EXIT
# compiled once here, or every start of a tool compiles thousands of files anew where byte code may not be written
export UV_COMPILE_BYTECODE=1
# A folder of wheels that pip is told of may hold the CPU build of torch; otherwise uv takes PyTorch's own CPU index.
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
unset UV_FIND_LINKS UV_PYTHON
rm -rf "$folder"
.tools/bin/uv venv -q --python "$python" "$folder"
install() { .tools/bin/uv pip install -q --python "$folder/bin/python" --no-deps "$@"; }
options=()
case $lock in
  gpu | gpu-te) options=(--find-links .wheels) ;; # torchaudio's stand-in
  *-gpu) ;;
  *)
    torch=$(grep '^torch==' "$file" || true)
    if [ -n "$links" ] && { [ -z "$torch" ] || install --dry-run --no-index --find-links "${links// /,}" "$torch" 2>/dev/null; }; then
      options=(--find-links "${links// /,}")
    else
      options=(--torch-backend cpu)
    fi
    options+=(--find-links .wheels) ;;
esac
if [ "$lock" = gpu-te ]; then
  # built against the torch that is installed first
  grep -v '^transformer-engine-torch' "$file" > "$folder/first.txt"
  install "${options[@]}" -r "$folder/first.txt"
  options+=(--no-build-isolation)
fi
install "${options[@]}" -r "$file"
if [ "$lock" = train ] && [ "$version" = 3.11 ]; then
  .tools/bin/python -m pip --python "$folder/bin/python" install -q --disable-pip-version-check --no-deps \
    --ignore-requires-python .wheels/megatron_core-*-cp311-*.whl
elif [ "$lock" = train ]; then
  install "$megatron"
fi
if [ "$folder" = .venv ]; then
  install --no-build-isolation -e .
fi
echo "$wanted $version" > "$folder/.stamp"
echo "== $folder: $((SECONDS - start)) s, $(du -sh "$folder" | cut -f1)"

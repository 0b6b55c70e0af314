#!/usr/bin/env bash
# Resolve every environments/*.in, with its overrides, into its lock file. The GPU ones are for Python 3.12 and CUDA's
# own builds of torch, whatever machine resolves them.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -eq 0 ]; then
  set -- train eval lmeval serve clients lmdeploy gpu gpu-te eval-gpu lmeval-gpu serve-gpu lmdeploy-gpu
fi
for name in "$@"; do
  lock=environments/$name.lock
  links=.wheels${PIP_FIND_LINKS:+,${PIP_FIND_LINKS// /,}}
  target=(--python-version 3.11)
  case $name in *gpu*) links=.wheels; target=(--python-version 3.12 --python-platform x86_64-manylinux_2_28) ;; esac
  case $name in *-gpu) links= ;; esac  # the stand-ins are for a CPU
  UV_FIND_LINKS=$links UV_PYTHON_DOWNLOADS=never .tools/bin/uv pip compile -q "environments/$name.in" \
    --override "environments/$name.overrides" "${target[@]}" --no-header --no-annotate -o "$lock.new"
  { echo "# Made by: make lock. Installed by: make env-$name."; cat "$lock.new"; } > "$lock"
  # resolved for 3.11, so what a newer Python needs besides is not in it: gradio's audioop, removed from Python in 3.13
  if [[ $name != *gpu* ]] && grep -q '^gradio==' "$lock"; then
    echo 'audioop-lts==0.2.2 ; python_version >= "3.13"' >> "$lock"
  fi
  rm "$lock.new"
done

#!/usr/bin/env bash
# Resolve every environments/*.in, with its overrides, into its lock file.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_FIND_LINKS=.wheels${PIP_FIND_LINKS:+,${PIP_FIND_LINKS// /,}}
for name in train eval serve; do
  lock=environments/$name.lock
  .tools/bin/uv pip compile -q "environments/$name.in" --override "environments/$name.overrides" \
    --python-version 3.11 --no-header --no-annotate -o "$lock.new"
  { echo "# Made by: make lock. Installed by: make env-$name."; cat "$lock.new"; } > "$lock"
  rm "$lock.new"
done

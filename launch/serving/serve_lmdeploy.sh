#!/usr/bin/env bash
# Run the command of `myllm serve MODEL --engine lmdeploy` without the Python launcher. LMDeploy needs a GPU.
#
#     MYLLM_API_KEY=… PORT=8000 TP=1 MAX_MODEL_LEN=2048 launch/serving/serve_lmdeploy.sh runs/mine/models/dpo [--dry-run]
#
# Unlike launch/serving/serve.py it checks nothing and does not wait for the first token. A test keeps both the same.
set -euo pipefail
model=$(realpath "${1:?usage: launch/serving/serve_lmdeploy.sh MODEL [--dry-run]}")
cd "$(dirname "$0")/../.."
variables=(HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 "PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}")
command=("$PWD/.venv-lmdeploy/bin/python" -m launch.serving.lmdeploy_closed serve api_server "$model" --backend turbomind
  --model-name "$(basename "$model")" --server-name 127.0.0.1 --server-port "${PORT:-8000}" --dtype bfloat16
  --session-len "${MAX_MODEL_LEN:?set it to the most tokens in prompt and reply}" --tp "${TP:-1}" --cache-max-entry-count 0.8
  --chat-template hf --disable-fastapi-docs)
# shellcheck disable=SC2016  # print the variable's name, not the key
echo 'VLLM_API_KEY="$MYLLM_API_KEY"' "${variables[@]}" "${command[@]}"
if [ "${2:-}" = --dry-run ]; then exit; fi
export VLLM_API_KEY=${MYLLM_API_KEY:?set it to the key that clients must send}
exec env "${variables[@]}" "${command[@]}"

#!/usr/bin/env bash
# Run the command of `myllm serve MODEL` without the Python launcher: vLLM on a CPU, on this machine only, with a key.
#
#     MYLLM_API_KEY=… PORT=8000 TP=1 MAX_MODEL_LEN=256 launch/serving/serve_vllm.sh runs/poetry-tiny/models/dpo [--dry-run]
#
# Unlike launch/serving/serve.py it checks nothing and does not wait for the first token. A test keeps both the same.
set -euo pipefail
model=$(realpath "${1:?usage: launch/serving/serve_vllm.sh MODEL [--dry-run]}")
cd "$(dirname "$0")/../.."
port=${PORT:-8000} tp=${TP:-1}
variables=(HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 "PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}"
  VLLM_HOST_IP=127.0.0.1 VLLM_NO_USAGE_STATS=1 OMP_NUM_THREADS=1)
parallel=() executor=uni
if [ "$tp" -gt 1 ]; then
  parallel=(--tensor-parallel-size "$tp") executor=mp
  variables+=("VLLM_CPU_OMP_THREADS_BIND=$(seq -s '|' 0 $((tp - 1)))")
else
  variables+=(VLLM_ENABLE_V1_MULTIPROCESSING=0)
fi
command=("$PWD/.venv-serve/bin/vllm" serve "$model" --served-model-name "$(basename "$model")"
  --host 127.0.0.1 --port "$port" --dtype float32 --max-model-len "${MAX_MODEL_LEN:?set it to the most tokens}"
  "${parallel[@]}" --enforce-eager --kv-cache-memory-bytes 256M --distributed-executor-backend "$executor"
  --middleware launch.serving.key.RequireKey --disable-fastapi-docs)
# shellcheck disable=SC2016  # print the variable's name, not the key
echo 'VLLM_API_KEY="$MYLLM_API_KEY"' "${variables[@]}" "${command[@]}"
if [ "${2:-}" = --dry-run ]; then exit; fi
export VLLM_API_KEY=${MYLLM_API_KEY:?set it to the key that clients must send}
exec env -u PYTHONDONTWRITEBYTECODE "${variables[@]}" "${command[@]}"

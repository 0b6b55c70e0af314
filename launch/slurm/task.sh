#!/usr/bin/env bash
# task.sh COMMAND…: run a job's command on one of its nodes; srun, or the site's container, starts it.
set -euo pipefail
export MYLLM_NODE_RANK=$SLURM_NODEID
exec "$@"

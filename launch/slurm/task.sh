#!/usr/bin/env bash
# task.sh COMMAND…: a job's command on one of its nodes, where srun (and the site's container) start it.
set -euo pipefail
export MYLLM_NODE_RANK=$SLURM_NODEID
exec "$@"

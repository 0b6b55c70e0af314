#!/usr/bin/env bash
# Clean a large corpus as Slurm job arrays, with datatrove's own Slurm executor and the settings of a site file. The
# options are those of preprocess.corpora.pipeline (docs/corpora.md).
#
#     source site/mine.sh
#     launch/slurm/preprocess.sh --source wudao --input WuDaoCorpus2.0_base_200G --output-folder corpus/wudao \
#       --tasks 512 --workers 128
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || { echo "error: no options given. For an example: head -9 $0" >&2; exit 2; }
unset SBATCH_SIGNAL  # datatrove's scripts do not handle the warning; a rerun repeats a task that ran out of time
site=(--partition "${SBATCH_PARTITION:?source a site file first: source site/mine.sh}")
if [ -n "${SBATCH_TIMELIMIT:-}" ]; then site+=(--time "$SBATCH_TIMELIMIT"); fi
if [ -n "${SBATCH_QOS:-}" ]; then site+=(--qos "$SBATCH_QOS"); fi
echo "$ myllm corpora --executor slurm ${site[*]} $*"
exec .venv/bin/myllm corpora --executor slurm "${site[@]}" "$@"

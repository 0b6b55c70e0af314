# Example: a small CPU partition without accounting, like the temporary cluster of the tests
# (`python tests/slurm_cluster.py` starts one).
# shellcheck shell=bash disable=SC2034
MYLLM_SITE=$(realpath "${BASH_SOURCE[0]}") && export MYLLM_SITE
export SBATCH_PARTITION=batch
export SBATCH_TIMELIMIT=00:30:00
export SBATCH_SIGNAL=B:USR1@60
declare -A OPTIONS=(
  [all]="--cpus-per-task=2 --mem=4000"
)
export MYLLM_RESTARTS=3
export MYLLM_PREFLIGHT=yes
export MYLLM_PREFLIGHT_OPTIONS="--slow-share 0.1 --min-disk-gb 1"   # the nodes share two cores
export OMP_NUM_THREADS=1   # the same
site_setup() {
  :
}

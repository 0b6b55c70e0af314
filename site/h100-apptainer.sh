# Example: nodes with eight H100, InfiniBand, an account to charge, Apptainer images, requeueing forbidden.
# Written from the documentation of such sites; not run on one.
# shellcheck shell=bash disable=SC2034
MYLLM_SITE=$(realpath "${BASH_SOURCE[0]}") && export MYLLM_SITE
export SBATCH_PARTITION=h100
export SBATCH_ACCOUNT=my-project
export SBATCH_QOS=normal
export SBATCH_TIMELIMIT=02:00:00
export SBATCH_SIGNAL=B:USR1@600
export SBATCH_NO_REQUEUE=1

declare -A OPTIONS=(
  [all]="--cpus-per-task=12 --mem=90G"
  [pretrain]="--time=24:00:00 --cpus-per-task=96 --mem=0 --exclusive"
  [sft]="--gpus-per-node=1"
  [dpo]="--gpus-per-node=1"
)
export MYLLM_RESTARTS=6
export MYLLM_PREFLIGHT=yes

export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
export MYLLM_CACHE=/scratch/$USER/myllm
MYLLM_CONTAINER="apptainer exec --nv --bind /scratch --bind $PWD /scratch/$USER/myllm-gpu.sif"
export MYLLM_ENVIRONMENTS=/opt/myllm   # in the image; it has no environments for serving and scoring, so submit with --to dpo

site_setup() {
  module purge
  module load apptainer
}

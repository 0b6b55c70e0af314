# Site file: all settings of a cluster that do not belong to a recipe. Copy it to site/NAME.sh, fill it in, then run
#
#     myllm submit poetry-tiny --site NAME --dry-run      # or by hand: source site/NAME.sh; sbatch launch/slurm/…
#
# It is plain bash, sourced when a job is submitted and again when it starts. SBATCH_* are sbatch's own variables; any of
# "INPUT ENVIRONMENT VARIABLES" in `man sbatch` may be set. For variables that are not set, Slurm's defaults apply.
# shellcheck shell=bash disable=SC2034

MYLLM_SITE=$(realpath "${BASH_SOURCE[0]}") && export MYLLM_SITE
export SBATCH_PARTITION=CHANGE_ME          # `sinfo -s` lists the partitions
export SBATCH_ACCOUNT=CHANGE_ME            # account to charge (sacctmgr show associations user=$USER); remove the line if there is none
# export SBATCH_QOS=normal                 # quality of service, if the site has several
export SBATCH_TIMELIMIT=04:00:00           # time limit of a job; a training resumes in the next job
export SBATCH_SIGNAL=B:USR1@300            # seconds before the time limit to warn the job: twice the time of saving a checkpoint
# export SBATCH_NO_REQUEUE=1               # if the site forbids requeueing: a training becomes a chain of jobs

# More options of sbatch, by stage; `all` applies to every job. The pretraining stage gets --nodes and --gpus-per-node
# from its hardware recipe.
declare -A OPTIONS=(
  [all]="--cpus-per-task=8 --mem=32G"
  [pretrain]="--time=24:00:00 --cpus-per-task=64 --mem=0 --exclusive"
  # [sft]="--gpus-per-node=8 --exclusive"  # post-training on GPUs: request the GPUs here
)

export MYLLM_RESTARTS=10                   # how often a training may be requeued, or additional jobs in its chain
export MYLLM_PREFLIGHT=yes                 # check the nodes of multi-node jobs before training (launch/slurm/preflight.py)
# export MYLLM_PREFLIGHT_OPTIONS="--min-network 5000"

# Network interface between nodes; `ip -brief address` lists the interfaces
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# export MYLLM_CACHE=/scratch/$USER/myllm  # downloads, on a disk shared by all nodes
# export TMPDIR=/tmp                       # fast local disk of each node

# Prefix of every command of a job, on every node. The container must mount the repository and the runs.
# MYLLM_CONTAINER="apptainer exec --nv --bind $PWD /path/to/myllm.sif"
# MYLLM_SRUN="--container-image=/path/to/myllm.sqsh --container-mounts=$PWD"   # instead, with Enroot and pyxis
# export MYLLM_ENVIRONMENTS=/opt/myllm     # folder of .venv, .venv-eval, .venv-serve, on disk or in the container's image

# Runs at the start of every job, on its first node: load modules, set proxies.
site_setup() {
  :   # module purge; module load cuda/13.0
}

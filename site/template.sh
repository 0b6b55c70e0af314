# A site: everything that belongs to a cluster and not to a recipe. Copy it to site/NAME.sh, fill it in, then
#
#     myllm submit poetry-tiny --site NAME --dry-run      # or by hand: source site/NAME.sh; sbatch launch/slurm/…
#
# It is plain bash, read when a job is submitted and again when it starts. SBATCH_* are sbatch's own variables (see
# "INPUT ENVIRONMENT VARIABLES" in `man sbatch`): any other of them may be set too. Lines left out keep Slurm's default.
# shellcheck shell=bash disable=SC2034

MYLLM_SITE=$(realpath "${BASH_SOURCE[0]}") && export MYLLM_SITE
export SBATCH_PARTITION=CHANGE_ME          # sinfo -s lists them
export SBATCH_ACCOUNT=CHANGE_ME            # who pays: sacctmgr show associations user=$USER; take the line out if nobody
# export SBATCH_QOS=normal                 # quality of service, where the site has several
export SBATCH_TIMELIMIT=04:00:00           # of a job; a training goes on in the next one
export SBATCH_SIGNAL=B:USR1@300            # warn the job so many seconds before its end: what a checkpoint takes, twice
# export SBATCH_NO_REQUEUE=1               # the site forbids requeueing: a training becomes a chain of jobs instead

# More options of sbatch, by stage; `all` are every job's. A stage that pretrains gets --nodes and --gpus-per-node from
# its hardware recipe.
declare -A OPTIONS=(
  [all]="--cpus-per-task=8 --mem=32G"
  [pretrain]="--time=24:00:00 --cpus-per-task=64 --mem=0 --exclusive"
  # [sft]="--gpus-per-node=8 --exclusive"  # a post-training on GPUs gets none by itself
)

export MYLLM_RESTARTS=10                   # times that a training may be requeued, or jobs more in its chain
export MYLLM_PREFLIGHT=yes                 # look at the nodes of a job of several before it trains (launch/slurm/preflight.py)
# export MYLLM_PREFLIGHT_OPTIONS="--min-network 5000"

# The network between nodes: ip -brief address lists interfaces
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# export MYLLM_CACHE=/scratch/$USER/myllm  # downloads, shared by all nodes
# export TMPDIR=/tmp                       # fast, on each node

# Put before every command of a job, on every node; the container must see the repository and the runs.
# MYLLM_CONTAINER="apptainer exec --nv --bind $PWD /path/to/myllm.sif"
# MYLLM_SRUN="--container-image=/path/to/myllm.sqsh --container-mounts=$PWD"   # instead, with Enroot and pyxis
# export MYLLM_ENVIRONMENTS=/opt/myllm     # where .venv, .venv-eval, .venv-serve lie: here, or in the container's image

# Run at the start of every job, on its first node: modules, proxies.
site_setup() {
  :   # module purge; module load cuda/13.0
}

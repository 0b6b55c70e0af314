# What the job scripts share; sourced by them with $root, the folder of the code, set.
# shellcheck shell=bash
root=${root:?set it before sourcing this}

warned='' pid=''
trap 'warned=yes' USR1  # Slurm's warning before the time limit; supervise acts on it

fail() { echo "error: $*" >&2; exit 1; }

# begin_job SITE FOLDER: the site's settings and modules; what the job was started with goes to FOLDER.
begin_job() {
  set +u  # a site's lines and its modules need not be so strict
  # shellcheck source=/dev/null
  if [ -n "$1" ]; then source "$1"; fi
  if declare -F site_setup >/dev/null; then site_setup; fi
  set -u
  cd "$root" || fail "$root is not there on $(hostname): the run must lie on a disk that all nodes share"
  python=$root/.venv/bin/python
  local first address
  # no fall-back to localhost: two nodes that each talk to themselves would both train, silently
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  address=$(scontrol -o show node "$first" | sed -nE 's/.* NodeAddr=([^ ]+).*/\1/p')
  port=$((20000 + SLURM_JOB_ID % 10000))
  export MYLLM_RENDEZVOUS=${address:-$first}:$port
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-}  # srun no longer takes it from the job by itself
  if [ -z "$SRUN_CPUS_PER_TASK" ]; then unset SRUN_CPUS_PER_TASK; fi
  mkdir -p "$2"
  {
    date --iso-8601=seconds
    echo "code $root"
    cat "$root/../revision.txt" 2>/dev/null || git -C "$root" describe --always --dirty 2>/dev/null || true
    scontrol show job "$SLURM_JOB_ID"
    env | grep -E '^(SLURM|SBATCH|SRUN|MYLLM|NCCL|GLOO|CUDA|OMP|PATH=|LD_LIBRARY)' | grep -viE 'KEY|TOKEN|SECRET' | sort
  } > "$2/job-$SLURM_JOB_ID.txt"
  echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, restarts ${SLURM_RESTART_COUNT:-0}: $2/job-$SLURM_JOB_ID.txt"
}

# each_node NODES COMMAND…: one task a node, in the site's container where it has one.
each_node() {
  local nodes=$1; shift
  local options=(--nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=60 --cpu-bind=none)
  # both are lists of words
  # shellcheck disable=SC2206
  local command=(srun "${options[@]}" ${MYLLM_SRUN:-} ${MYLLM_CONTAINER:-} bash "$root/launch/slurm/task.sh" "$@")
  echo "$ ${command[*]}"
  "${command[@]}"
}

# preflight FOLDER OUTPUT NODES [OPTIONS…]: ends the job where a node is not fit.
preflight() {
  local folder=$1 output=$2 nodes=$3; shift 3
  # shellcheck disable=SC2086  # a list of words
  each_node "$nodes" "$python" -m launch.slurm.preflight --folder "$folder" --output "$output" ${MYLLM_PREFLIGHT_OPTIONS:-} "$@" ||
    fail "the nodes are not fit (see above); --exclude=NODE in the site's OPTIONS leaves one out"
}

# Whether every node of the job still answers.
nodes_answer() {
  timeout 90 srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 true
}

# go_on LEFT REASON: requeue this job, or leave the rest to the next job of its chain.
go_on() {
  local left=$1 reason=$2 restarts=${SLURM_RESTART_COUNT:-0} cap=${MYLLM_RESTARTS:-10}
  if [ -n "$left" ]; then
    if [ "$left" -gt 0 ]; then
      echo "$reason: the next job of the chain goes on ($left left)"
      exit 0
    fi
    fail "$reason, and this was the last job of the chain: the same myllm submit goes on (MYLLM_RESTARTS sets how many)"
  fi
  if [ "$restarts" -ge "$cap" ]; then
    fail "$reason, and this job was restarted $restarts times, as often as MYLLM_RESTARTS allows: the same myllm submit goes on"
  fi
  echo "$reason: requeued, restart $((restarts + 1)) of at most $cap"
  scontrol requeue "$SLURM_JOB_ID" || fail "this site forbids requeueing: set SBATCH_NO_REQUEUE=1 in its site file, submit again"
  trap - TERM
  sleep 600 &  # Slurm ends this script
  wait
}

# Ask the processes of the job's steps, not this script, to end. A step that has not started yet is waited for.
ask_to_end() {
  while kill -0 "$pid" 2>/dev/null; do
    if squeue -h -s -j "$SLURM_JOB_ID" -o %i | grep -qE '\.[0-9]+$'; then
      echo "warned: the time limit is near; saving"
      scancel --signal=TERM "$SLURM_JOB_ID"
      break
    fi
    sleep 1
  done
}

# supervise OUTCOME NODES LEFT COMMAND…: run a stage; OUTCOME, which it writes, says how it ended, not its exit code.
#
# Warned by USR1 (--signal) before the time limit, or by SIGTERM when preempted: the trainer saves, then it goes on in
# the next life of the job, only if a newer checkpoint was written. What fails on nodes that answer ends the chain.
supervise() {
  local outcome=$1 nodes=$2 left=$3 found
  shift 3
  if [ "${SLURM_RESTART_COUNT:-0}" -gt "${MYLLM_RESTARTS:-10}" ]; then
    fail "restarted ${SLURM_RESTART_COUNT} times, more often than MYLLM_RESTARTS=${MYLLM_RESTARTS:-10} allows"
  fi
  trap 'echo "SIGTERM: preempted, cancelled, or out of time"' TERM  # the steps are told by Slurm itself
  rm -f "$outcome"
  each_node "$nodes" "$@" &
  pid=$!
  trap 'trap "" USR1; ask_to_end' USR1
  if [ -n "$warned" ]; then trap '' USR1; ask_to_end; fi
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done  # a trap ends it early
  found=$(cat "$outcome" 2>/dev/null || echo lost)
  case $found in done*) return 0 ;; esac
  if ! scontrol -o show job "$SLURM_JOB_ID" | grep -q ' JobState=RUNNING '; then
    fail "cancelled, or out of time ($found): the same command goes on from what is done"
  fi
  case $found in
    advanced*) go_on "$left" "stopped in good order (${found#advanced })" ;;
    stopped*) fail "${found#stopped }: give it more time (--time), or save more often (save-interval)" ;;
    *)
      if ! nodes_answer; then go_on "$left" "a node of $SLURM_JOB_NODELIST no longer answers"; fi
      if [ "$found" = lost ]; then found="killed without a word: memory? (--mem; see above)"; fi
      fail "$found" ;;
  esac
}

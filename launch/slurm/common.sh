# Functions that the job scripts share. They set $root, the folder of the code, and source this file.
# shellcheck shell=bash
root=${root:?set it before sourcing this}

warned='' pid=''  # warned: the time limit is near
trap 'warned=yes' USR1  # Slurm's warning before the time limit; supervise acts on it

fail() { echo "error: $*" >&2; exit 1; }

# begin_job SITE FOLDER: load the site's settings and modules; record the job and its environment in FOLDER.
begin_job() {
  set +u  # site files and modules may use unset variables
  # shellcheck source=/dev/null
  if [ -n "$1" ]; then source "$1"; fi
  if declare -F site_setup >/dev/null; then site_setup; fi
  set -u
  cd "$root" || fail "$root does not exist on $(hostname): put the run on a disk that all nodes share"
  python=$root/.venv/bin/python
  local first address
  # no fall-back to localhost: each of two nodes would silently train alone
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  address=$(scontrol -o show node "$first" | sed -nE 's/.* NodeAddr=([^ ]+).*/\1/p')
  port=$((20000 + SLURM_JOB_ID % 10000))
  export MYLLM_RENDEZVOUS=${address:-$first}:$port
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-}  # srun no longer inherits it from the job
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

# each_node NODES COMMAND…: run COMMAND as one task per node, in the site's container if it has one.
each_node() {
  local nodes=$1; shift
  local options=(--nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=60 --cpu-bind=none)
  # MYLLM_SRUN and MYLLM_CONTAINER are lists of words
  # shellcheck disable=SC2206
  local command=(srun "${options[@]}" ${MYLLM_SRUN:-} ${MYLLM_CONTAINER:-} bash "$root/launch/slurm/task.sh" "$@")
  echo "$ ${command[*]}"
  "${command[@]}"
}

# preflight FOLDER OUTPUT NODES [OPTIONS…]: check the nodes; end the job if one fails the check.
preflight() {
  local folder=$1 output=$2 nodes=$3; shift 3
  # shellcheck disable=SC2086  # a list of words
  each_node "$nodes" "$python" -m launch.slurm.preflight --folder "$folder" --output "$output" ${MYLLM_PREFLIGHT_OPTIONS:-} "$@" ||
    fail "the preflight check failed (see above): to leave a node out, add --exclude=NODE to OPTIONS in the site file"
}

# Succeeds if every node of the job still answers.
nodes_answer() {
  timeout 90 srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 true
}

# go_on LEFT REASON: requeue this job, or end it and let the next job of its chain resume.
go_on() {
  local left=$1 reason=$2 restarts=${SLURM_RESTART_COUNT:-0} cap=${MYLLM_RESTARTS:-10}
  if [ -n "$left" ]; then
    if [ "$left" -gt 0 ]; then
      echo "$reason: the next job of the chain resumes ($left left)"
      exit 0
    fi
    fail "$reason, and this was the chain's last job: resume with the same myllm submit (MYLLM_RESTARTS sets how many)"
  fi
  if [ "$restarts" -ge "$cap" ]; then
    fail "$reason, restarted $restarts times, the limit of MYLLM_RESTARTS: resume with the same myllm submit"
  fi
  echo "$reason: requeued, restart $((restarts + 1)) of at most $cap"
  scontrol requeue "$SLURM_JOB_ID" || fail "requeueing is forbidden: set SBATCH_NO_REQUEUE=1 in the site file, resubmit"
  trap - TERM
  sleep 600 &  # Slurm kills this script meanwhile
  wait
}

# Send SIGTERM to the processes of the job's steps, not to this script; first wait for a step that has not started yet.
ask_to_end() {
  while kill -0 "$pid" 2>/dev/null; do
    if squeue -h -s -j "$SLURM_JOB_ID" -o %i | grep -qE '\.[0-9]+$'; then
      echo "the time limit is near: saving"
      scancel --signal=TERM "$SLURM_JOB_ID"
      break
    fi
    sleep 1
  done
}

# supervise OUTCOME NODES LEFT COMMAND…: run a stage. COMMAND writes how it ended to the file OUTCOME; its exit code is
# not used.
#
# On USR1 (--signal, before the time limit) or SIGTERM (preemption) the trainer saves. It resumes in the requeued or
# next job, but only if a newer checkpoint was written. A failure while all nodes still answer ends the chain.
supervise() {
  local outcome=$1 nodes=$2 left=$3 found
  shift 3
  if [ "${SLURM_RESTART_COUNT:-0}" -gt "${MYLLM_RESTARTS:-10}" ]; then
    fail "restarted ${SLURM_RESTART_COUNT} times, more than MYLLM_RESTARTS=${MYLLM_RESTARTS:-10} allows"
  fi
  trap 'echo "SIGTERM: preempted, cancelled, or out of time"' TERM  # Slurm itself signals the steps
  rm -f "$outcome"
  each_node "$nodes" "$@" &
  pid=$!
  trap 'trap "" USR1; ask_to_end' USR1
  if [ -n "$warned" ]; then trap '' USR1; ask_to_end; fi
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done  # a trap interrupts wait
  found=$(cat "$outcome" 2>/dev/null || echo lost)
  case $found in done*) return 0 ;; esac
  if ! scontrol -o show job "$SLURM_JOB_ID" | grep -q ' JobState=RUNNING '; then
    fail "cancelled, or out of time ($found): run the same command to resume"
  fi
  case $found in
    advanced*) go_on "$left" "stopped after saving (${found#advanced })" ;;
    stopped*) fail "${found#stopped }: give it more time (--time), or save more often (save-interval)" ;;
    *)
      if ! nodes_answer; then go_on "$left" "a node of $SLURM_JOB_NODELIST no longer answers"; fi
      if [ "$found" = lost ]; then found="killed without a message, perhaps out of memory (raise --mem; see above)"; fi
      fail "$found" ;;
  esac
}

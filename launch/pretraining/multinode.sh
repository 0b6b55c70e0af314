#!/usr/bin/env bash
# Pretrain on several machines without Slurm: run the same command on each over ssh, with torchrun's c10d rendezvous on
# the first. The options are those of launch.pretraining.pretrain; the recipe's nnodes must be the number of hosts.
#
#     HOSTS="gpu1 gpu2 gpu3 gpu4" launch/pretraining/multinode.sh \
#       --model qwen2-0.5b --training zh-10b --hardware cluster-4x8 --run runs/mine
#
# All hosts need this repository and its .venv under the same path, a shared run folder, and ssh without a password.
# Logs: RUN/logs/host-N.log. On Ctrl-C or SIGTERM all hosts save and exit; run the same command to resume.
# PORT (default 29500) is the rendezvous port. ADDRESS (default: the first of HOSTS) is how the others reach the first
# host. REMOTE (default ssh -o BatchMode=yes) runs a command on a host.
set -euo pipefail
cd "$(dirname "$0")/../.."
usage='usage: HOSTS="a b" launch/pretraining/multinode.sh --model … --training … --hardware … --run …'
read -ra hosts <<< "${HOSTS:?$usage}"
read -ra remote <<< "${REMOTE:-ssh -o BatchMode=yes}"
meeting=${ADDRESS:-${hosts[0]}}:${PORT:-29500}
run=
for ((i = 1; i < $#; i++)); do
  if [ "${!i}" = --run ]; then next=$((i + 1)) run=${!next}; fi
done
[ -n "$run" ] || { echo "error: --run FOLDER is missing; $usage" >&2; exit 2; }
run=$(realpath -m "$run")
mkdir -p "$run/logs"
words=$(printf ' %q' "$@")

for host in "${hosts[@]}"; do  # check all hosts before the first starts
  "${remote[@]}" "$host" "test -x $(printf %q "$PWD/.venv/bin/python") && test -d $(printf %q "$run")" ||
    { echo "error: $host cannot be reached, or has no $PWD/.venv, or does not see $run" >&2; exit 2; }
done

pids=()
for node in "${!hosts[@]}"; do
  log=$run/logs/host-$node.log
  # ssh forwards no signals: the remote shell writes its process id, which exec makes the trainer's
  command="cd $(printf %q "$PWD") && echo \$\$ > $(printf %q "$run/logs/host-$node.pid") &&
    exec .venv/bin/myllm pretrain$words --node-rank $node --rendezvous $meeting"
  echo "$ ${remote[*]} ${hosts[$node]} .venv/bin/myllm pretrain$words --node-rank $node --rendezvous $meeting > $log"
  "${remote[@]}" "${hosts[$node]}" "$command" > "$log" 2>&1 < /dev/null &
  pids+=($!)
done

# shellcheck disable=SC2329  # the trap calls it
stop() {
  trap '' INT TERM
  echo "stopping: every machine saves and exits"
  for node in "${!hosts[@]}"; do
    "${remote[@]}" "${hosts[$node]}" "kill -TERM \$(cat $(printf %q "$run/logs/host-$node.pid"))" < /dev/null || true
  done
}
trap stop INT TERM

failed=0
for node in "${!hosts[@]}"; do
  while kill -0 "${pids[$node]}" 2>/dev/null; do wait "${pids[$node]}" || true; done  # a trap interrupts wait
  code=0
  wait "${pids[$node]}" || code=$?
  if [ "$code" -ne 0 ]; then
    echo "error: ${hosts[$node]} ended with $code; $(grep -a '^error: ' "$run/logs/host-$node.log" | tail -n 1) log: $run/logs/host-$node.log" >&2
    if [ $failed -eq 0 ]; then stop; fi
    failed=1
  fi
done
if [ $failed -eq 0 ]; then tail -n 1 "$run/logs/host-0.log"; fi
exit $failed

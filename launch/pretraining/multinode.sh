#!/usr/bin/env bash
# Pretrain on several machines without Slurm: the same command on each, over ssh, meeting at the first one (torchrun's
# c10d rendezvous). The options are those of launch.pretraining.pretrain; the recipe's nnodes is the number of hosts.
#
#     HOSTS="gpu1 gpu2 gpu3 gpu4" launch/pretraining/multinode.sh \
#       --model qwen2-0.5b --training zh-10b --hardware cluster-4x8 --run runs/mine
#
# All hosts have this repository and its .venv under the same path and share the run's folder; ssh needs no password.
# Logs: RUN/logs/host-N.log. Ctrl-C or SIGTERM: all save, then end; the same command goes on.
# PORT (default 29500) is where they meet, ADDRESS (default: the first of HOSTS) how the others reach the first,
# REMOTE (default ssh -o BatchMode=yes) what runs a command on a host.
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

for host in "${hosts[@]}"; do  # before any of them starts
  "${remote[@]}" "$host" "test -x $(printf %q "$PWD/.venv/bin/python") && test -d $(printf %q "$run")" ||
    { echo "error: $host cannot be reached, or has no $PWD/.venv, or does not see $run" >&2; exit 2; }
done

pids=()
for node in "${!hosts[@]}"; do
  log=$run/logs/host-$node.log
  # the remote shell leaves its process id, which becomes the trainer's: a signal does not travel through ssh
  command="cd $(printf %q "$PWD") && echo \$\$ > $(printf %q "$run/logs/host-$node.pid") &&
    exec .venv/bin/myllm pretrain$words --node-rank $node --rendezvous $meeting"
  echo "$ ${remote[*]} ${hosts[$node]} .venv/bin/myllm pretrain$words --node-rank $node --rendezvous $meeting > $log"
  "${remote[@]}" "${hosts[$node]}" "$command" > "$log" 2>&1 < /dev/null &
  pids+=($!)
done

# shellcheck disable=SC2329  # the trap calls it
stop() {
  trap '' INT TERM
  echo "stopping: every machine saves and ends"
  for node in "${!hosts[@]}"; do
    "${remote[@]}" "${hosts[$node]}" "kill -TERM \$(cat $(printf %q "$run/logs/host-$node.pid"))" < /dev/null || true
  done
}
trap stop INT TERM

failed=0
for node in "${!hosts[@]}"; do
  while kill -0 "${pids[$node]}" 2>/dev/null; do wait "${pids[$node]}" || true; done  # a trap ends it early
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

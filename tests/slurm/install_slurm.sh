#!/usr/bin/env bash
# Slurm for the tests: Debian's packages (built to allow several slurmd on one host), installed where they are missing
# and we are root; else it says what to install. Nothing is started: the tests start daemons and end them.
set -euo pipefail
packages=(slurmctld slurmd slurm-client munge)
missing=()
for program in munged slurmctld slurmd sbatch; do
  PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || missing+=("$program")
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "error: ${missing[*]} not found: as root, apt-get install -y --no-install-recommends ${packages[*]}" >&2
  exit 2
fi
echo "== installing ${packages[*]}"
export DEBIAN_FRONTEND=noninteractive
# a service that cannot start without systemd or a configuration is not wanted here
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' > $policy
  chmod +x $policy
  trap 'rm -f $policy' EXIT
fi
apt-get update -q >/dev/null
apt-get install -y -q --no-install-recommends "${packages[@]}" >/dev/null

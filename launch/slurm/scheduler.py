"""Slurm's commands, asked as a user would: states of jobs, checks before submission, cancelling."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from artifacts.errors import UserError
from artifacts.layout import REPOSITORY

ALIVE = frozenset("PENDING RUNNING REQUEUED REQUEUE_HOLD CONFIGURING COMPLETING SUSPENDED RESIZING SIGNALING".split())
FINE = frozenset({*ALIVE, "COMPLETED"})
NO_ANSWER = re.compile(r"configuration (source|file)|unable to contact|connection refused|zero bytes|munge", re.I)
UNKNOWN = "UNKNOWN"  # Slurm has forgotten the job (MinJobAge), and no accounting database tells


@dataclass(frozen=True)
class Job:
    """A job as Slurm sees it now. `why` is the reason it waits, or the nodes it runs on."""

    id: int
    state: str
    elapsed: str
    why: str

    @property
    def alive(self) -> bool:
        return self.state in ALIVE


def call(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands, in the repository's folder, which job scripts know as SLURM_SUBMIT_DIR.

    Raises:
        UserError: it is not installed here, or no cluster answers it.
    """
    if shutil.which(command[0]) is None:
        raise UserError(
            f"{command[0]} is not installed here: run this on the cluster's login node, or `myllm run` without Slurm"
        )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode and NO_ANSWER.search(done.stderr):
        raise UserError(
            f"no Slurm answers here ({said(done).split('; ')[-1]}): run this on a node of the cluster, or wait for its "
            "controller"
        )
    return done


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command complained of, as one line."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {done.returncode}"


def find_jobs(ids: Iterable[int]) -> dict[int, Job]:
    """The jobs by id, from squeue (finished ones for MinJobAge, 300 s by default), else from the accounting database.

    Raises:
        UserError: Slurm cannot be asked.
    """
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    found: dict[int, Job] = {}
    # an array of one more id: with a single unknown one squeue fails instead of leaving it out
    listed = call(["squeue", "-h", "-a", "-t", "all", "-o", "%A|%T|%M|%R", "-j", ",".join(map(str, wanted))])
    if listed.returncode and "Invalid job id" not in listed.stderr:
        raise UserError(f"Slurm does not list the run's jobs: {said(listed)}")
    for line in listed.stdout.splitlines():
        number, state, elapsed, why = line.split("|", 3)
        found[int(number)] = Job(int(number), state, elapsed, why)
    missing = [number for number in wanted if number not in found]
    if missing and shutil.which("sacct"):
        told = call(["sacct", "-n", "-X", "-P", "-j", ",".join(map(str, missing)), "-o", "JobIDRaw,State,Elapsed"])
        for line in told.stdout.splitlines() if told.returncode == 0 else []:
            number, state, elapsed = line.split("|", 2)
            if number.isdigit() and int(number) in missing:
                found[int(number)] = Job(int(number), state.split()[0], elapsed, "")
    return {number: found.get(number, Job(number, UNKNOWN, "", "")) for number in wanted}


def refuse_dead(ids: Iterable[int]) -> None:
    """UserError where a job to wait for failed or is unknown: sbatch takes an unknown id, and does not wait."""
    for job in find_jobs(ids).values():
        if job.state == UNKNOWN:
            raise UserError(f"job {job.id} is not known to Slurm: a job that waits for it would start at once")
        if job.state not in FINE:
            raise UserError(f"job {job.id} is {job.state}: a job that waits for its success would never start")


def test_only(options: list[str], script: list[str], environment: dict[str, str]) -> None:
    """Ask sbatch whether it would take the job; UserError with its reason where not."""
    done = call(["sbatch", "--test-only", *options, *script], environment)
    if done.returncode:
        raise UserError(f"Slurm refuses the job: {said(done)}")


def submit(options: list[str], script: list[str], environment: dict[str, str]) -> int:
    """Submit a job; returns its id.

    Raises:
        UserError: sbatch refused it.
    """
    done = call(["sbatch", "--parsable", *options, *script], environment)
    number = done.stdout.strip().split(";")[0]
    if done.returncode or not number.isdigit():
        raise UserError(f"Slurm refuses the job: {said(done)}")
    return int(number)


def cancel(ids: list[int]) -> None:
    """Cancel jobs; UserError where Slurm says no."""
    done = call(["scancel", *map(str, ids)])
    if done.returncode:
        raise UserError(f"Slurm did not cancel: {said(done)}")

"""Call Slurm's user commands: states of jobs, checks before submission, submission, cancelling."""

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
UNKNOWN = "UNKNOWN"  # Slurm has forgotten the job (MinJobAge), and no accounting database knows it


@dataclass(frozen=True)
class Job:
    """The present state of a job. `why` is the reason that it waits, or the nodes that it runs on."""

    id: int
    state: str
    elapsed: str
    why: str

    @property
    def alive(self) -> bool:
        return self.state in ALIVE


def call(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands in the repository's folder, so that SLURM_SUBMIT_DIR is this folder in job scripts.

    Raises:
        UserError: the command is not installed here, or the cluster does not answer.
    """
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not installed here: run this on the cluster's login node, or use `myllm run`")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode and NO_ANSWER.search(done.stderr):
        raise UserError(
            f"Slurm does not answer ({error_text(done).split('; ')[-1]}): run this on a node of the cluster, or wait "
            "for its controller"
        )
    return done


def error_text(done: subprocess.CompletedProcess[str]) -> str:
    """The stderr of a command as one line, else its exit code."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {done.returncode}"


def find_jobs(ids: Iterable[int]) -> dict[int, Job]:
    """The jobs by id, from squeue (finished jobs for MinJobAge, 300 s by default), else from the accounting database.

    Raises:
        UserError: squeue fails, or the cluster does not answer.
    """
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    found: dict[int, Job] = {}
    # squeue leaves unknown ids out of a list, but fails when its only id is unknown
    listed = call(["squeue", "-h", "-a", "-t", "all", "-o", "%A|%T|%M|%R", "-j", ",".join(map(str, wanted))])
    if listed.returncode and "Invalid job id" not in listed.stderr:
        raise UserError(f"squeue cannot list the run's jobs: {error_text(listed)}")
    for line in listed.stdout.splitlines():
        number, state, elapsed, why = line.split("|", 3)
        found[int(number)] = Job(int(number), state, elapsed, why)
    missing = [number for number in wanted if number not in found]
    if missing and shutil.which("sacct"):
        recorded = call(["sacct", "-n", "-X", "-P", "-j", ",".join(map(str, missing)), "-o", "JobIDRaw,State,Elapsed"])
        for line in recorded.stdout.splitlines() if recorded.returncode == 0 else []:
            number, state, elapsed = line.split("|", 2)
            if number.isdigit() and int(number) in missing:
                found[int(number)] = Job(int(number), state.split()[0], elapsed, "")
    return {number: found.get(number, Job(number, UNKNOWN, "", "")) for number in wanted}


def refuse_dead(ids: Iterable[int]) -> None:
    """Raise UserError if a job to wait for failed or is unknown: sbatch accepts an unknown id and does not wait."""
    for job in find_jobs(ids).values():
        if job.state == UNKNOWN:
            raise UserError(f"--after: job {job.id} is not known to Slurm; a job that waits for it would start at once")
        if job.state not in FINE:
            raise UserError(f"--after: job {job.id} is {job.state}; a job that waits for its success would never start")


def test_only(options: list[str], script: list[str], environment: dict[str, str]) -> None:
    """Check with `sbatch --test-only` that Slurm would accept the job. Raises UserError with its reason if not."""
    done = call(["sbatch", "--test-only", *options, *script], environment)
    if done.returncode:
        raise UserError(f"Slurm refuses the job: {error_text(done)}")


def submit(options: list[str], script: list[str], environment: dict[str, str]) -> int:
    """Submit a job and return its id.

    Raises:
        UserError: sbatch refused the job.
    """
    done = call(["sbatch", "--parsable", *options, *script], environment)
    number = done.stdout.strip().split(";")[0]
    if done.returncode or not number.isdigit():
        raise UserError(f"Slurm refuses the job: {error_text(done)}")
    return int(number)


def cancel(ids: list[int]) -> None:
    """Cancel jobs. Raises UserError if scancel fails."""
    done = call(["scancel", *map(str, ids)])
    if done.returncode:
        raise UserError(f"scancel failed: {error_text(done)}")

"""Submit a pipeline's stages to Slurm as a chain of jobs; show their states; cancel them.

    myllm submit poetry-tiny --site mine --dry-run     # print the sbatch commands, write nothing
    myllm submit poetry-tiny --site mine               # run it again later to submit only the missing stages
    myllm submit poetry-tiny --site mine --rehearse    # the same chain in small, as `myllm rehearse`
    myllm status poetry-tiny
    myllm cancel poetry-tiny

A submission copies what its jobs will read to `runs/<name>/slurm/<n>/`: the code, recipes and site file as they are
now (`code/`, `site.sh`), the stages' commands (`pipeline.json`), the git revision and the changes since
(`revision.txt`). Each job id is added to `runs/<name>/slurm/jobs.json` at once. Each job runs one stage
(`launch/slurm/stage.sbatch`, `launch.slurm.job`) after the job before it has succeeded.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from artifacts.ahead import Ahead, Needs
from artifacts.errors import UserError
from artifacts.files import atomic_folder, hold_lock, read_json, write_json, write_text
from artifacts.layout import ENVIRONMENTS, REPOSITORY, Run
from launch.pipeline.arguments import add_pipeline_arguments, read_pipeline
from launch.pipeline.check import look, refuse
from launch.pipeline.definition import TRAINERS, Pipeline, Stage, fingerprint, is_myllm
from launch.pipeline.rehearsed import not_rehearsed
from launch.pipeline.runner import is_fresh, manifest_path
from launch.rehearsal.rehearse import add_rehearsal_arguments, prepare, small_pipeline
from launch.slurm import scheduler
from launch.slurm.site import Site, read_site

SCRIPT = "launch/slurm/stage.sbatch"
NOT_CODE = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info", "build", "dist", "node_modules", "*.out")


@dataclass(frozen=True)
class Planned:
    """A job to submit: its stage, sbatch's options without the dependency, the script with its arguments, and the
    commands of the stage."""

    stage: str
    options: list[str]
    script: list[str]
    singleton: bool
    commands: list[list[str]]


@dataclass(frozen=True)
class Submitted:
    """A submitted job, as stored in `jobs.json`."""

    id: int
    stage: str
    submission: int
    log: str


def jobs_file(run: Run) -> Path:
    return run.folder / "slurm" / "jobs.json"


def submitted_jobs(run: Run) -> list[Submitted]:
    path = jobs_file(run)
    return [Submitted(**entry) for entry in read_json(path)] if path.exists() else []


def git(*arguments: str) -> str:
    """Output of git in the repository; empty if it is not a git clone."""
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def copy_code(target: Path) -> None:
    """Copy the repository's files that git does not ignore; without git, all files but environments and runs."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if not listed:
        shutil.copytree(REPOSITORY, target, ignore=NOT_CODE, dirs_exist_ok=True)
        return
    for name in listed.rstrip("\0").split("\0"):
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)


def freeze(pipeline: Pipeline, run: Run, site: Site, number: int) -> Path:
    """Create the folder of a submission and return it.

    Raises:
        UserError: the run's folder is not writable.
    """
    folder = run.folder / "slurm" / str(number)
    try:
        with atomic_folder(folder) as aside:
            (aside / "logs").mkdir()
            copy_code(aside / "code")
            home = Path(site.environment.get("MYLLM_ENVIRONMENTS", REPOSITORY))
            for name in ENVIRONMENTS.values():
                (aside / "code" / name).symlink_to(home / name)
            (aside / "code" / "runs").symlink_to(REPOSITORY / "runs")  # commands name runs relative to the repository
            shutil.copy(site.path, aside / "site.sh")
            changes = git("status", "--short") + git("diff", "HEAD")
            write_text(aside / "revision.txt", f"revision {git('rev-parse', 'HEAD').strip() or 'unknown'}\n{changes}")
            stages = [
                {**asdict(stage), "reads": [str(file.relative_to(REPOSITORY)) for file in stage.reads]}
                for stage in pipeline.stages
            ]
            content = {"name": pipeline.name, "run": str(run.folder.resolve()), "site": site.name, "stages": stages}
            write_json(aside / "pipeline.json", content)
        write_json(
            run.folder / "pipeline.json", {"pipeline": pipeline.name, "stages": [s.name for s in pipeline.stages]}
        )
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be written ({error.strerror}), so no job could log there: make it "
            "writable, or give --run-folder"
        ) from None
    return folder


def what_is_missing(pipeline: Pipeline, run: Run, stages: list[Stage]) -> list[Stage]:
    """The given stages that are not done, or that need a stage which is not done.

    Raises:
        UserError: a stage that they need is neither done nor given.
    """
    known: dict[str, str] = {}
    missing: list[Stage] = []
    for stage in pipeline.stages:
        known[stage.name] = fingerprint(stage, known)
        fresh = is_fresh(run, stage, known[stage.name])
        if stage not in stages:
            if not fresh and any(stage.name in wanted.needs for wanted in stages):
                raise UserError(f"stage {stage.name} is not done yet: submit it too, with --from {stage.name}")
        elif not fresh or any(done.name in stage.needs for done in missing):
            missing.append(stage)
    return missing


def machines(needs: Needs) -> tuple[int, list[str]]:
    """Number of nodes for a stage, and sbatch's options for them and their GPUs."""
    nodes, gpus = int(needs.nodes), int(needs.gpus)
    return nodes, [f"--nodes={nodes}", *([f"--gpus-per-node={gpus}"] if gpus else [])]


def plan(run: Run, stages: list[Stage], site: Site, submission: Path, ahead: Ahead) -> list[Planned]:
    """The jobs of a chain. If the site forbids requeueing, a stage that trains becomes several jobs."""
    planned = []
    for stage in stages:
        nodes, where = machines(ahead.of_stage.get(stage.name, Needs()))
        options = [
            f"--job-name={run.name}-{stage.name}",
            f"--chdir={REPOSITORY}",
            f"--output={submission}/logs/{stage.name}-%j.out",
            *where,
            "--ntasks-per-node=1",
            *site.options_of(stage.name),
        ]
        script = [str(submission / "code" / SCRIPT), str(submission), stage.name, str(nodes)]
        can_go_on = any(is_myllm(command, *TRAINERS) for command in stage.commands)
        if site.may_requeue or not can_go_on:
            planned.append(Planned(stage.name, options, script, False, stage.commands))
        else:
            for left in range(site.restarts, -1, -1):
                planned.append(Planned(stage.name, options, [*script, str(left)], True, stage.commands))
    return planned


def dependency(previous: int | str | None, after: list[int], singleton: bool) -> list[str]:
    """sbatch's options that make a job wait. A singleton waits for all earlier jobs of its name, failed ones too."""
    waits = [f"afterok:{':'.join(map(str, after))}"] if after else []
    if previous is not None:
        waits.append(f"afterok:{previous}")
    if singleton:
        waits.append("singleton")
    return [f"--dependency={','.join(waits)}", "--kill-on-invalid-dep=yes"] if waits else []


def chained(planned: list[Planned]) -> Iterator[tuple[Planned, str | None]]:
    """Each job with the stage whose last job it waits for; None for jobs of the first stage."""
    before: str | None = None
    for i, job in enumerate(planned):
        if i and planned[i - 1].stage != job.stage:
            before = planned[i - 1].stage
        yield job, before


def show(planned: list[Planned], site: Site, after: list[int]) -> None:
    """Print the commands of a submission as a script: $STAGE stands for the id of that stage's job."""
    for name, value in site.environment.items():
        if name.startswith("SBATCH_"):
            print(f"export {name}={shlex.quote(value)}")
    printed = ""
    for job, before in chained(planned):
        if job.stage != printed:
            printed = job.stage
            print("\n".join(f"# {shlex.join(command)}" for command in job.commands))
        waits = dependency(f"${before}" if before else None, [] if before else after, job.singleton)
        words = [shlex.join(["sbatch", "--parsable", *job.options]), *waits, shlex.join(job.script)]
        print(f"{job.stage}=$({' '.join(words)})")


def alone(run: Run) -> IO[str]:
    """Lock a run for submission: two at once would use the same folder and overwrite each other's job list."""
    try:
        return hold_lock(
            run.folder / ".submit.lock", f"another `myllm submit` of {run.name} is running: wait until it ends"
        )
    except OSError as error:
        raise UserError(
            f"{error.filename or run.folder} cannot be written ({error.strerror}): make it writable, or give "
            "--run-folder"
        ) from None


def submit_pipeline(
    pipeline: Pipeline,
    run: Run,
    stages: list[Stage],
    site: Site,
    after: list[int],
    dry_run: bool,
    ahead: Ahead | None = None,
) -> list[Submitted]:
    """Check the given stages, copy the code and submit them as a chain; returns its jobs, already in `jobs.json`.

    Raises:
        UserError: nothing was submitted, because jobs of this run are still pending or running, Slurm refuses a job, a
            job to wait for failed or is unknown, or the run's folder is not writable.
    """
    with nullcontext() if dry_run else alone(run):
        missing = what_is_missing(pipeline, run, stages)
        for stage in stages:
            if stage not in missing:
                print(f"{stage.name}: done before, not submitted")
        known = submitted_jobs(run)
        number = max((job.submission for job in known), default=0) + 1
        folder = (run.folder / "slurm" / str(number)).resolve()
        planned = plan(run, missing, site, folder, ahead or look(pipeline, stages, run, quick=True))
        environment = {**os.environ, **site.environment}
        if dry_run:
            show(planned, site, after)
            return []
        if not planned:
            return []
        busy = [job for job in scheduler.find_jobs(job.id for job in known).values() if job.alive]
        if busy:
            numbers = ", ".join(str(job.id) for job in busy)
            raise UserError(
                f"jobs {numbers} of {run.name} are still pending or running: wait, or run `myllm cancel {run.name}`"
            )
        scheduler.refuse_dead(after)
        for job in {tuple(job.options): job for job in planned}.values():
            try:
                scheduler.test_only(job.options, [str(REPOSITORY / SCRIPT)], environment)
            except UserError as error:
                raise UserError(f"{error} (stage {job.stage}, site file {site.path})") from None
        freeze(pipeline, run, site, number)
        for stage in missing:  # a done stage must run again if a stage that it needs does
            manifest_path(run, stage.name).unlink(missing_ok=True)
        return _submit(planned, run, number, environment, known, after)


def _submit(
    planned: list[Planned],
    run: Run,
    submission: int,
    environment: dict[str, str],
    known: list[Submitted],
    after: list[int],
) -> list[Submitted]:
    """Submit the chain. If Slurm refuses a job midway, cancel the jobs submitted so far."""
    jobs: list[Submitted] = []
    last: dict[str, int] = {}  # a stage's newest job
    for job, before in chained(planned):
        waits = dependency(last[before] if before else None, [] if before else after, job.singleton)
        options = [*job.options, *waits]
        print(f"$ {shlex.join(['sbatch', '--parsable', *options, *job.script])}", flush=True)
        try:
            number = scheduler.submit(options, job.script, environment)
        except UserError:
            if jobs:
                scheduler.cancel([entry.id for entry in jobs])
            raise
        last[job.stage] = number
        log = next(word for word in job.options if word.startswith("--output=")).partition("=")[2]
        jobs.append(Submitted(number, job.stage, submission, log.replace("%j", str(number))))
        write_json(jobs_file(run), [asdict(entry) for entry in [*known, *jobs]])
        print(f"job {number}: {job.stage}", flush=True)
    return jobs


def states(run: Run) -> dict[str, tuple[Submitted, scheduler.Job]]:
    """The newest submitted job of each stage with its state; in a chain, the first job that has not ended."""
    known = submitted_jobs(run)
    newest = max((job.submission for job in known), default=0)
    found = scheduler.find_jobs(job.id for job in known if job.submission == newest) if known else {}
    result: dict[str, tuple[Submitted, scheduler.Job]] = {}
    for entry in known:
        if entry.submission == newest and not (entry.stage in result and result[entry.stage][1].alive):
            result[entry.stage] = (entry, found[entry.id])
    return result


def describe(entry: Submitted, job: scheduler.Job) -> str:
    """A job's state as `myllm status` prints it."""
    if job.alive:
        return f"job {job.id} {job.state} {job.elapsed} {job.why}".rstrip()
    ended: dict[str, Any] = {"COMPLETED": "", scheduler.UNKNOWN: " (Slurm has forgotten it)"}
    return f"job {job.id} {job.state}{ended.get(job.state, f': {entry.log}')}"


def cancel_run(run: Run) -> list[int]:
    """Cancel every pending or running job of a run; returns their ids."""
    found = scheduler.find_jobs(job.id for job in submitted_jobs(run)).values()
    alive = [job.id for job in found if job.alive and job.state != "COMPLETING"]
    if alive:
        scheduler.cancel(alive)
    return alive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pipeline_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print sbatch's commands, submit nothing")
    parser.add_argument("--no-check", action="store_true", help="submit although `myllm check` finds something missing")
    parser.add_argument(
        "--site",
        required=True,
        help="site file with partition, account and limits: a name in site/, or a path that ends in .sh",
    )
    parser.add_argument("--rehearse", action="store_true", help="submit the same chain of jobs in small first")
    add_rehearsal_arguments(parser)
    parser.add_argument(
        "--after",
        action="append",
        type=int,
        default=[],
        metavar="JOB",
        help="start only after this job has succeeded; repeatable",
    )


def run(given: argparse.Namespace) -> None:
    site = read_site(given.site)
    if given.rehearse:
        rehearsal = small_pipeline(given)
        pipeline, folders, stages = rehearsal.small, rehearsal.run, rehearsal.stages
        if not given.dry_run:
            prepare(rehearsal, given)
    else:
        pipeline, folders, stages = read_pipeline(given)
        if not given.dry_run and (text := not_rehearsed(given.pipeline, pipeline.file, pipeline.values)):
            print(f"note: {text}", flush=True)
    ahead = look(pipeline, stages, folders, quick=given.dry_run)
    if not given.dry_run and not given.no_check:
        refuse(ahead, pipeline, here=True)
        if pipeline.notes:
            print(pipeline.notes, flush=True)
    jobs = submit_pipeline(pipeline, folders, stages, site, given.after, given.dry_run, ahead)
    if jobs:
        told = folders.folder
        print(f"{len(jobs)} jobs: see them with `myllm status {told}`, cancel: `myllm cancel {told}`")

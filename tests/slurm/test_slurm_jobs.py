"""Jobs on a real Slurm of four virtual nodes: a chain ends as a local run does, whatever happens on the way.

`make test-slurm` runs it, on a cluster that tests/conftest.py starts and ends.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_cluster import MISSING, available, lose_node, processes

from artifacts.files import read_json, sha256
from benchmarks.made_up_data import copy_run
from converters.checkpoint import Checkpoint
from launch.pipeline.runner import MARK
from launch.pretraining.checkpoints import RECIPE, reached
from launch.pretraining.training_log import logs_of, read_history

REPOSITORY = Path(__file__).resolve().parents[2]
SHORT = ("limit=1500", "vocab=1024", "train_iters=20", "sft_examples=32", "dpo_pairs=16", "questions=8")
SETS = [
    part
    for value in (*SHORT, "sft_set=--set logging_steps=1", "dpo_set=--set logging_steps=1")
    for part in ("--set", value)
]
ONE = ("nproc-per-node=1", "pipeline-model-parallel-size=1", "decoder-first-pipeline-num-layers=null")
TWO_NODES = (
    *("nnodes=2", "nproc-per-node=2", "tensor-model-parallel-size=2", "pipeline-model-parallel-size=1"),
    "decoder-first-pipeline-num-layers=null",
)
EVERY_STEP = ("log-interval=1", "eval-iters=1", "eval-interval=10000")

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.skipif(not available(), reason=MISSING)]


@dataclass(frozen=True)
class Chain:
    """A pipeline that runs as Slurm jobs, their ids by stage, and the same pipeline run here, up to `sft`."""

    run: Path
    jobs: dict[str, list[int]]
    here: Path


@dataclass(frozen=True)
class Limited:
    """A training whose job has too little time, and what it is told to do."""

    run: Path
    job: int
    log: Path
    keys: tuple[str, ...]


@pytest.fixture
def site(tmp_path) -> Callable[..., str]:
    """Makes a site file out of the example of a throw-away cluster and further lines."""

    return lambda *lines: site_in(tmp_path, *lines)


def site_in(folder: Path, *lines: str) -> str:
    path = folder / "site.sh"
    path.write_text((REPOSITORY / "site" / "local-test.sh").read_text() + "\n".join(lines) + "\n")
    return str(path)


def call(cluster: dict[str, str], *command: str, fails: bool = False) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, env=cluster, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stderr if fails else done.stdout


def myllm(cluster: dict[str, str], *arguments: str, fails: bool = False) -> str:
    return call(cluster, sys.executable, "-m", "launch.cli", *arguments, fails=fails)


def submit(cluster: dict[str, str], run: Path, *options: str, site: str = "local-test") -> dict[str, list[int]]:
    """Submit a pipeline's stages; returns the job ids of each."""
    myllm(cluster, "submit", "poetry-tiny", "--run-folder", str(run), "--site", site, *SETS, *options)
    jobs = read_json(run / "slurm" / "jobs.json")
    last = max(job["submission"] for job in jobs)
    found: dict[str, list[int]] = {}
    for job in jobs:
        if job["submission"] == last:
            found.setdefault(job["stage"], []).append(job["id"])
    return found


def sbatch(cluster: dict[str, str], output: Path, options: tuple[str, ...], run: Path, *keys: str, site: str) -> int:
    """Submit launch/slurm/train.sbatch by hand, as its first lines say; returns the job's id."""
    words = ["sbatch", "--parsable", f"--output={output}", *options, "launch/slurm/train.sbatch", *training(run, *keys)]
    script = 'source "$0"; "$@"'
    return int(call(cluster, "bash", "-c", script, site, *words).strip())


def training(run: Path, *keys: str) -> list[str]:
    sets = [part for key in keys for part in ("--set", key)]
    return ["--model", "qwen2-tiny", "--training", "demo", "--run", str(run), *sets]


def local(run: Path, *keys: str) -> None:
    call(dict(os.environ), sys.executable, "-m", "launch.pretraining.pretrain", *training(run, *keys))


def shown(cluster: dict[str, str], job: int) -> dict[str, str]:
    text = call(cluster, "scontrol", "-o", "show", "job", str(job))
    return dict(re.findall(r"(\w+)=(\S+)", text))


def state(cluster: dict[str, str], job: int) -> str:
    return shown(cluster, job)["JobState"]


def weights(run: Path, step: int) -> dict[str, bytes]:
    """The weights of a checkpoint, by name."""
    found = Checkpoint(run / "checkpoints" / f"iter_{step:07d}")
    return {name: found.read(name).numpy().tobytes() for name in found.shapes}


def wait(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.3)


def wait_for_end(cluster: dict[str, str], job: int, log: Path, seconds: float = 900) -> str:
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
    wait(lambda: state(cluster, job) in over, seconds, lambda: read(log))
    return state(cluster, job)


def read(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.exists() else f"no {log}"


def log_of_job(run: Path, job: int) -> Path:
    return Path(next(entry["log"] for entry in read_json(run / "slurm" / "jobs.json") if entry["id"] == job))


def losses(run: Path) -> dict[int, float]:
    return {int(step): loss for step, loss in read_history(*logs_of(run / "checkpoints"))["loss"]}


@pytest.fixture(scope="module")
def chain(cluster, tmp_path_factory) -> Iterator[Chain]:
    """The whole pipeline, submitted; and the same run here, finished as far as the bytes are compared."""
    folder = tmp_path_factory.mktemp("slurm")
    run, here = folder / "slurm" / "chain", folder / "here" / "chain"
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "run",
        "poetry-tiny",
        "--run-folder",
        str(here),
        *SETS,
        "--to",
        "sft",
    ]
    with (folder / "here.out").open("wb") as output:
        # threads as in site/local-test.sh: on some processors two sum in another order than one
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        beside = subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=output, stderr=output)
    try:
        jobs = submit(cluster, run)
        assert beside.wait(600) == 0, read(folder / "here.out")
        yield Chain(run, jobs, here)
    finally:
        beside.terminate()
        beside.wait()


@pytest.fixture(scope="module")
def finished(cluster, chain) -> Chain:
    """The chain, when its last job is over."""
    over = ("COMPLETED", "FAILED", "CANCELLED")
    wait(lambda: state(cluster, chain.jobs["report"][0]) in over, 900, lambda: myllm(cluster, "status", str(chain.run)))
    return chain


@pytest.fixture(scope="module")
def limited(cluster, chain, tmp_path_factory) -> Iterator[Limited]:
    """It is asked for before its time: Slurm's clock goes by the minute, and the next tests run meanwhile."""
    folder = tmp_path_factory.mktemp("limited")
    run, log = copy_run(chain.here, folder / "run"), folder / "limited.out"
    keys = ("train-iters=5000", *EVERY_STEP, *ONE)
    # it warns 75 s before the end of two minutes, looking every 30 s, so after 45 to 75 s
    file = site_in(folder, "export SBATCH_TIMELIMIT=00:02:00 SBATCH_SIGNAL=B:USR1@75")
    job = sbatch(cluster, log, ("--nodes=1",), run, *keys, site=file)
    yield Limited(run, job, log, keys)
    call(cluster, "scancel", str(job))


@pytest.mark.usefixtures("limited")
def test_two_nodes_train_as_one_process(cluster, chain, tmp_path):
    """TP 2 x DP 2 over gloo, from a checkpoint: what a fresh start draws depends on the layout."""
    start = copy_run(chain.here, tmp_path / "start")
    keys = ("train-iters=10", *EVERY_STEP)
    local(start, *keys, *ONE, "exit-interval=5")
    run = copy_run(chain.here, tmp_path / "two")
    shutil.copytree(start / "checkpoints", run / "checkpoints", ignore=shutil.ignore_patterns("*.log"))
    settings = run / "checkpoints" / RECIPE  # the copied dataset lies elsewhere, and blend.json names folders
    settings.write_text(settings.read_text().replace(str(start), str(run)))
    local(start, *keys, *ONE)
    log = tmp_path / "two.out"
    site_file = str(REPOSITORY / "site" / "local-test.sh")
    job = sbatch(cluster, log, ("--nodes=2", "--time=10"), run, *keys, *TWO_NODES, site=site_file)
    assert wait_for_end(cluster, job, log) == "COMPLETED", read(log)
    assert "every node is fit" in read(log)
    found, wanted = losses(run), losses(start)
    assert min(found) == 6
    for step in range(6, 11):
        assert found[step] == pytest.approx(wanted[step], rel=1e-6), step


def test_the_chain_ends_in_the_bytes_of_a_local_run(cluster, finished):
    run, jobs, other = finished.run, finished.jobs, finished.here
    status = myllm(cluster, "status", str(run))
    assert status.count(" done ") == status.count("COMPLETED") == len(jobs) == 16, status
    assert read_json(run / "report.json")["gates"]["serve"]["identical"] > 0
    assert (run / "slurm/1/revision.txt").read_text().startswith("revision ")
    for part in ("corpus", "tokenizer", "tasks"):
        assert sha256(other / part) == sha256(run / part), part
    files = [*other.glob("dataset/*.bin"), *other.glob("dataset/*.idx"), *other.glob("models/*/*.safetensors")]
    assert len(files) == 10
    for file in files:
        assert sha256(file) == sha256(run / file.relative_to(other)), file
    assert losses(other) == losses(run)
    again = myllm(cluster, "submit", "poetry-tiny", "--run-folder", str(run), "--site", "local-test", *SETS)
    assert again.count("done before, not submitted") == 16


def test_out_of_time_twice_it_goes_on_to_the_same_loss(cluster, chain, limited, tmp_path):
    run, told = limited.run, limited.log
    wait(lambda: int(shown(cluster, limited.job)["Restarts"]) >= 2, 300, lambda: read(told))
    call(cluster, "scancel", str(limited.job))
    wait_for_end(cluster, limited.job, told)
    found = re.findall(r"checkpoints (\d+) -> (\d+)\): requeued", told.read_text())
    steps = [(int(before), int(after)) for before, after in found]
    assert len(steps) >= 2 and steps[0][0] == 0 and all(before < after for before, after in steps), read(told)
    assert all(first[1] == second[0] for first, second in zip(steps, steps[1:])), read(told)
    last = steps[1][1]
    other = copy_run(chain.here, tmp_path / "undisturbed")
    local(other, *limited.keys, f"exit-interval={last}")
    assert reached(other / "checkpoints") == last
    # weights, not the log: Megatron logs the mean of a start's first two steps as the second one's loss
    assert weights(run, last) == weights(other, last)


def test_a_model_is_scored_by_a_job(cluster, chain, tmp_path):
    base = chain.here / "models" / "base"
    words = (str(base), "--suite", "smoke_cpu", "--sets", "questions", "--output", str(tmp_path), "--limit", "8")
    told = myllm(cluster, "eval", *words, "--slurm", "local-test")
    job = int(re.findall(r"^job (\d+): ", told, re.M)[0])
    log = tmp_path / "jobs" / f"eval-smoke_cpu-{job}.out"
    assert wait_for_end(cluster, job, log) == "COMPLETED", read(log)
    assert [row["n"] for row in read_json(tmp_path / "scores.json")] == [8], read(log)
    assert "invalid partition" in myllm(
        cluster, "eval", *words, "--slurm", site_in(tmp_path, "export SBATCH_PARTITION=none"), fails=True
    )


def hit(cluster: dict[str, str], run: Path, job: int, iterations: int) -> None:
    """Warn a job as Slurm does, when its training is so far."""
    log = log_of_job(run, job)
    wait(lambda: max(losses(run), default=0) >= iterations, 300, lambda: read(log))
    call(cluster, "scancel", "--batch", "--signal=USR1", str(job))


@pytest.mark.parametrize("requeue", [True, False], ids=["requeued", "singleton"])
def test_warned_it_saves_and_the_chain_goes_on(cluster, finished, site, requeue):
    run = finished.run
    lines = () if requeue else ("export SBATCH_NO_REQUEUE=1 MYLLM_RESTARTS=2",)
    for old in [*run.glob("checkpoints*")]:
        shutil.rmtree(old)
    iterations, last = (40, "convert") if requeue else (42, "pretrain")
    jobs = submit(
        cluster, run, "--from", "pretrain", "--to", last, "--set", f"train_iters={iterations}", site=site(*lines)
    )
    assert len(jobs["pretrain"]) == (1 if requeue else 3)
    hit(cluster, run, jobs["pretrain"][0], 5)
    end = jobs[last][-1]
    assert wait_for_end(cluster, end, log_of_job(run, end)) == "COMPLETED", read(log_of_job(run, jobs["pretrain"][0]))
    first = log_of_job(run, jobs["pretrain"][0]).read_text()
    assert ("requeued, restart 1 of at most 3" if requeue else "the next job of the chain resumes (2 left)") in first
    assert [state(cluster, job) for job in jobs["pretrain"]] == ["COMPLETED"] * len(jobs["pretrain"])
    assert read_json(run / "manifests" / "pretrain.json")["metrics"]["iterations"] == iterations


def test_a_stage_that_fails_stops_the_chain_and_names_its_log(cluster, tmp_path, site):
    """And what a site puts before every command, a container on most, is there."""
    run, container = tmp_path / "bad", tmp_path / "container"
    container.write_text(f'#!/bin/bash\necho "$SLURM_JOB_ID $SLURM_NODEID" >> {tmp_path}/contained\nshift\nexec "$@"\n')
    container.chmod(0o755)
    jobs = submit(
        cluster, run, "--set", "limit=many", "--to", "clean", site=site(f"MYLLM_CONTAINER='{container} --nv'")
    )
    end = jobs["clean"][0]
    assert wait_for_end(cluster, end, log_of_job(run, end)) == "CANCELLED"
    assert state(cluster, jobs["extract"][0]) == "FAILED" and state(cluster, jobs["simplify"][0]) == "CANCELLED"
    told = log_of_job(run, jobs["extract"][0]).read_text()
    assert "error: stage extract failed" in told and f"log: {run}/logs/extract.log" in told
    status = myllm(cluster, "status", str(run))
    assert f"FAILED: {log_of_job(run, jobs['extract'][0])}" in status
    assert not (run / "manifests" / "simplify.json").exists()
    contained = (tmp_path / "contained").read_text().splitlines()
    assert contained == [f"{jobs[stage][0]} 0" for stage in ("download", "extract")]


def test_warned_without_a_checkpoint_it_stops_and_cancelled_it_leaves_no_process(cluster, tmp_path):
    run = tmp_path / "cut"
    jobs = submit(cluster, run, "--to", "binning")
    tokenizer = jobs["tokenizer"][0]
    started = run / "logs" / "tokenizer.log"
    wait(started.exists, 60, lambda: myllm(cluster, "status", str(run)))
    busy = myllm(cluster, "submit", "poetry-tiny", "--run-folder", str(run), "--site", "local-test", fails=True)
    assert "still pending or running" in busy and busy.count("\n") == 1
    call(cluster, "scancel", "--batch", "--signal=USR1", str(tokenizer))
    log = log_of_job(run, tokenizer)
    assert wait_for_end(cluster, tokenizer, log, 60) == "FAILED"
    assert "no newer checkpoint" in log.read_text() and "save more often" in log.read_text()
    myllm(cluster, "cancel", str(run))  # Slurm itself cancels what depends on the failed one, half a minute later
    started.unlink()
    jobs = submit(cluster, run, "--to", "binning")
    assert "download" not in jobs, "what was done is not submitted again"
    wait(started.exists, 60, lambda: myllm(cluster, "status", str(run)))
    told = myllm(cluster, "cancel", str(run))
    assert told == f"cancelled {', '.join(str(job) for ids in jobs.values() for job in ids)}\n"
    mark = f"{MARK}={run.resolve()}"
    wait(lambda: not processes(cluster, mark), 30, lambda: str(processes(cluster, mark)))
    assert state(cluster, jobs["binning"][0]) == "CANCELLED"
    assert "no pending or running job" in myllm(cluster, "cancel", str(run))


def test_what_cannot_run_is_refused_before_anything_is_submitted(cluster, tmp_path, site):
    run = tmp_path / "refused"

    def refused(*lines: str, options: tuple[str, ...] = ()) -> str:
        arguments = ("submit", "poetry-tiny", "--run-folder", str(run), "--site", site(*lines), *options)
        told = myllm(cluster, *arguments, fails=True)
        assert told.startswith("error: ") and told.count("\n") == 1, told
        assert not (run / "slurm" / "jobs.json").exists()
        return told

    assert "invalid partition specified: none" in refused("export SBATCH_PARTITION=none")
    assert "Invalid account" in refused("export SBATCH_PARTITION=paid")
    assert "exceeds some limit" in refused("export SBATCH_TIMELIMIT=99:00:00")
    assert "job 999999 is not known to Slurm" in refused(options=("--after", "999999"))
    failed = int(call(cluster, "sbatch", "--parsable", "--output=/dev/null", "--wrap=exit 3").strip())
    wait(lambda: state(cluster, failed) == "FAILED", 30, lambda: "it did not fail")
    assert f"job {failed} is FAILED" in refused(options=("--after", str(failed)))
    run.mkdir(exist_ok=True)
    (run / "slurm").write_text("a file where the log folder would go")
    assert "cannot be written" in refused() and "no job could log there" in refused()
    assert not call(cluster, "squeue", "-h", "-t", "pending,running").strip(), "nothing was submitted"


def test_preempted_it_saves_and_waits_for_its_turn(cluster, chain, tmp_path):
    run, log = copy_run(chain.here, tmp_path / "preempted"), tmp_path / "preempted.out"
    file = str(REPOSITORY / "site" / "local-test.sh")
    here = ("--nodes=1", "--nodelist=node1")
    job = sbatch(cluster, log, (*here, "--time=20"), run, "train-iters=5000", *EVERY_STEP, *ONE, site=file)
    jobs = [str(job)]
    try:
        wait(lambda: max(losses(run), default=0) >= 5, 180, lambda: read(log))
        urgent = ("--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 300")
        jobs.append(call(cluster, "sbatch", "--parsable", *here, *urgent).strip())
        wait(lambda: int(shown(cluster, job)["Restarts"]) == 1, 120, lambda: read(log))
    finally:
        call(cluster, "scancel", *jobs)
    saved = re.search(r"stopped after saving \(checkpoints 0 -> (\d+)\): requeued, restart 1", log.read_text())
    assert saved and reached(run / "checkpoints") == int(saved[1]) >= 5, log.read_text()


def test_a_lost_node_is_noticed_and_the_training_goes_on_with_others(cluster, chain, tmp_path):
    """A node's slurmd dies, and then a node. Last: it leaves the cluster with two nodes less."""
    run, log = copy_run(chain.here, tmp_path / "lost"), tmp_path / "lost.out"
    keys = (
        "train-iters=5000",
        "save-interval=5",
        *EVERY_STEP,
        *TWO_NODES,
        "nproc-per-node=1",
        "tensor-model-parallel-size=1",
    )
    file = site_in(tmp_path, "export MYLLM_PREFLIGHT=no")  # which other tests see
    job = sbatch(cluster, log, ("--nodes=2", "--time=20"), run, *keys, site=file)

    def trains_on() -> None:
        wait(lambda: state(cluster, job) == "RUNNING", 180, lambda: read(log))  # ranks of before may save once more
        before = reached(run / "checkpoints")
        wait(lambda: reached(run / "checkpoints") > before, 180, lambda: read(log))

    def nodes() -> list[str]:
        return call(cluster, "scontrol", "show", "hostnames", shown(cluster, job)["NodeList"]).split()

    def lose(slurmd_alone: bool, restarts: int) -> str:
        lost = nodes()[1]
        lose_node(cluster, lost, slurmd_alone)
        wait(lambda: int(shown(cluster, job)["Restarts"]) == restarts, 180, lambda: read(log))
        return lost

    try:
        trains_on()
        first = lose(slurmd_alone=True, restarts=1)
        trains_on()
        second = lose(slurmd_alone=False, restarts=2)
        trains_on()
        assert not {first, second} & {*nodes()} and first != second
    finally:
        call(cluster, "scancel", str(job))
    wait_for_end(cluster, job, log)
    wait(
        lambda: not processes(cluster, f"SLURM_JOB_ID={job}"),
        40,
        lambda: str(processes(cluster, f"SLURM_JOB_ID={job}")),
    )

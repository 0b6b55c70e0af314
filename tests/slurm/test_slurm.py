"""What submits to Slurm, without a Slurm: site files, plans, frozen code, scripts, containers, the verdict on nodes."""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.errors import UserError
from artifacts.files import hold_lock, read_json, write_json
from artifacts.layout import Run
from artifacts.processes import free_port
from launch.pipeline.check import look
from launch.pipeline.definition import Pipeline, Stage, load_pipeline
from launch.pipeline.runner import StageUnfinished, manifest_path, run_pipeline
from launch.serving import serve
from launch.slurm import job, preflight, scheduler, site, submit
from launch.slurm.submit import dependency, freeze, plan, submit_pipeline

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# whatever environments are made beside them
FOREIGN = (".git", ".venv", ".tools", ".wheels", "runs")
SCRIPTS = sorted(
    path
    for top in REPOSITORY.iterdir()
    if top.is_dir() and not top.name.startswith(FOREIGN)
    for path in top.rglob("*")
    if path.is_file() and (path.suffix in (".sh", ".sbatch") or path.name == "run" and path.parent.name == ".ci")
)
CONTAINERS = REPOSITORY / "environments" / "containers"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_shellcheck_finds_nothing(script):
    done = subprocess.run([BIN / "shellcheck", "-x", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_there_are_scripts_to_check():
    names = {path.name for path in SCRIPTS}
    assert {"stage.sbatch", "train.sbatch", "common.sh", "multinode.sh", "template.sh", "create.sh", "run"} <= names


def test_hadolint_finds_nothing():
    done = subprocess.run([BIN / "hadolint", CONTAINERS / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_apptainer_definitions_say_what_the_dockerfile_says():
    """One definition for each family, with the sections Apptainer knows, on the Dockerfile's images, with its files."""
    docker = (CONTAINERS / "Dockerfile").read_text()
    for name in re.findall(r"--target (\S+)", docker):
        text = (CONTAINERS / f"{name}.def").read_text()
        head = dict(line.split(": ") for line in text.splitlines() if re.match(r"\w+: ", line))
        assert head["Bootstrap"] == "docker" and f"FROM {head['From']} AS" in docker
        assert re.findall(r"^%(\w+)", text, re.M) == ["files", "post", "runscript", "test"]
        copied = [line.split() for line in text.split("%files")[1].split("%post")[0].splitlines() if line.strip()]
        assert {one for one, _ in copied} == set(
            re.findall(r"^COPY (?:\S+ )*?([\w.-]+) (?:\./|\w+)$", docker, re.M)
        ) | {"pyproject.toml"}
        post = text.split("%post")[1].split("%runscript")[0]
        assert subprocess.run(["bash", "-n"], input=post, text=True).returncode == 0
        made = re.findall(r"create\.sh ([\w-]+)", post)
        target = docker.split(f" AS {name}\n")[1].split("\nFROM ")[0]
        assert made and made == re.findall(r"create\.sh ([\w-]+)", target)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "here.sh"
    path.write_text(text)
    return str(path)


def test_the_sites_of_the_repository_are_read():
    local = site.read_site("local-test")
    assert local.environment["SBATCH_PARTITION"] == "batch" and local.may_requeue and local.restarts == 3
    assert local.options["all"] == ["--cpus-per-task=2", "--mem=4000"]
    assert not site.read_site("h100-apptainer").may_requeue
    with pytest.raises(UserError, match="SBATCH_PARTITION, SBATCH_ACCOUNT still says CHANGE_ME"):
        site.read_site("template")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "declare -A OPTIONS=([pretrian]=--mem=1)",
            r"OPTIONS\[pretrian\]: no pipeline has this stage \(did you mean 'pretrain'",
        ),
        ("declare -A OPTIONS=([pretrain]=--nodes=4)", "sets --nodes, which myllm submit sets itself"),
        ("if then", "bash cannot read .*syntax error"),
        ("false", "bash cannot read"),
        ("export SBATCH_SIGNAL=TERM@60", "write B:USR1@SECONDS"),
        ("export SBATCH_ACCOUNT=CHANGE_ME", "SBATCH_ACCOUNT still says CHANGE_ME"),
    ],
)
def test_bad_site_files_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        site.read_site(written(tmp_path, text))


def test_an_unknown_site_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean 'local-test'"):
        site.read_site("locl-test")


def two_stages() -> Pipeline:
    train = shlex.split(
        "myllm pretrain --model qwen2-0.5b --training zh-10b --hardware cluster-4x8 --run r --set seed=2"
    )
    return Pipeline("two", [Stage("tokenizer", [["true"]]), Stage("pretrain", [train], ["tokenizer"])])


def test_a_training_gets_the_nodes_of_its_recipe_and_a_chain_where_requeueing_is_forbidden(tmp_path):
    stages = two_stages().stages
    free = site.read_site(written(tmp_path, "declare -A OPTIONS=([all]='--mem=1G' [pretrain]='--time=9:00')"))
    run = Run(tmp_path / "r")
    ahead = look(two_stages(), stages, run, quick=True)
    first, second = plan(run, stages, free, tmp_path / "r/slurm/1", ahead)
    assert "--nodes=1" in first.options and not any("gpus" in word for word in first.options)
    assert "--nodes=4" in second.options and "--gpus-per-node=8" in second.options
    assert second.options[-2:] == ["--mem=1G", "--time=9:00"] and second.script[-2:] == ["pretrain", "4"]
    forbidden = site.read_site(written(tmp_path, "export SBATCH_NO_REQUEUE=1 MYLLM_RESTARTS=2"))
    jobs = plan(run, stages, forbidden, tmp_path / "r/slurm/1", ahead)
    assert [found.script[-1] for found in jobs] == ["1", "2", "1", "0"] and [j.singleton for j in jobs] == [
        False
    ] + 3 * [True]
    assert len({word for found in jobs[1:] for word in found.options if "job-name" in word}) == 1


def test_dependencies_are_sbatchs_own():
    assert dependency(None, [], False) == []
    assert dependency(12, [], False) == ["--dependency=afterok:12", "--kill-on-invalid-dep=yes"]
    assert dependency("$a", [3, 4], True)[0] == "--dependency=afterok:3:4,afterok:$a,singleton"


def test_what_a_submission_freezes_runs_without_the_repositorys_files(tmp_path):
    run = Run(tmp_path / "run")
    pipeline = load_pipeline("poetry-tiny", run.folder)
    folder = freeze(pipeline, run, site.read_site("local-test"), 1)
    code = folder / "code"
    assert (code / "launch/pipelines/poetry-tiny.yaml").read_bytes() == (
        REPOSITORY / "launch/pipelines/poetry-tiny.yaml"
    ).read_bytes()
    assert (folder / "revision.txt").read_text().startswith("revision ")
    assert not (code / "runs").exists() or (code / "runs").resolve() == REPOSITORY / "runs"
    script = (
        "import launch.slurm.job as j, sys; from pathlib import Path\n"
        "pipeline, run = j.read_frozen(Path(sys.argv[1]))\n"
        "print(j.__file__, run.folder, pipeline.between('pretrain', 'pretrain')[0].reads[0])"
    )
    told = subprocess.run([code / ".venv/bin/python", "-c", script, folder], cwd=code, capture_output=True, text=True)
    assert told.stdout.split() == [
        str(code / "launch/slurm/job.py"),
        str(run.folder),
        str(code / "megatron_configs/models/qwen2-tiny.yaml"),
    ], told.stderr
    frozen, _ = job.read_frozen(folder)
    same = [replace(stage, reads=[]) for stage in frozen.stages]
    assert same == [replace(stage, reads=[]) for stage in pipeline.stages]


def test_a_dry_run_is_a_script_and_writes_nothing(tmp_path):
    command = [sys.executable, "-m", "launch.cli", "submit", "poetry-tiny", "--site", "local-test", "--dry-run"]
    command += ["--run-folder", str(tmp_path / "run"), "--from", "download", "--to", "extract", "--after", "7"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
    lines = done.stdout.splitlines()
    assert "export SBATCH_PARTITION=batch" in lines
    assert "# myllm download chinese-poetry zhwiki-sample" in lines
    first, second = (line for line in lines if "sbatch" in line)
    assert first.startswith("download=$(sbatch --parsable ") and "--dependency=afterok:7 " in first
    assert "--dependency=afterok:$download --kill-on-invalid-dep=yes " in second
    assert not (tmp_path / "run").exists()


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="not installed here: run this on the cluster's login node"):
        scheduler.call(["squeue"])


def test_a_stage_in_the_middle_is_not_submitted_alone(tmp_path):
    run = Run(tmp_path / "run")
    pipeline = load_pipeline("poetry-tiny", run.folder)
    with pytest.raises(UserError, match="stage simplify is not done yet: submit it too, with --from simplify"):
        submit_pipeline(pipeline, run, pipeline.between("clean", None), site.read_site("local-test"), [], dry_run=True)


def test_what_is_submitted_does_not_take_itself_for_done(tmp_path, monkeypatch):
    """A stage that needs one to be made again is done before; the job would skip it."""
    run = Run(tmp_path / "run")
    pipeline = Pipeline("two", [Stage("a", [["true"]]), Stage("b", [["true"]], ["a"])])
    run_pipeline(pipeline, run, pipeline.stages)
    manifest_path(run, "a").unlink()
    jobs = iter(range(1, 9))
    monkeypatch.setattr(scheduler, "test_only", lambda *_: None)
    monkeypatch.setattr(scheduler, "submit", lambda *_: next(jobs))
    with hold_lock(run.folder / ".submit.lock", ""), pytest.raises(UserError, match="another `myllm submit` of run"):
        submit_pipeline(pipeline, run, pipeline.stages, site.read_site("local-test"), [], dry_run=False)
    found = submit_pipeline(pipeline, run, pipeline.stages, site.read_site("local-test"), [], dry_run=False)
    assert [entry.stage for entry in found] == ["a", "b"] and not manifest_path(run, "b").exists()


def test_the_serving_script_gives_options_that_there_are():
    line = next(
        line
        for line in (REPOSITORY / "launch/slurm/serve.sbatch").read_text().splitlines()
        if "launch.serving.serve" in line and "$@" in line
    )
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    assert parser.parse_args(["MODEL", *shlex.split(line.partition('"$@"')[2], comments=True)]).lan


def test_what_advanced_is_told_by_checkpoints_of_every_trainer(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert job.progress(run) == {"checkpoints": 0}
    (tmp_path / "checkpoints/latest_checkpointed_iteration.txt").write_text("25")
    (tmp_path / "models/sft.work/output/checkpoint-40").mkdir(parents=True)
    (tmp_path / "models/sft.work/output/checkpoint-8").mkdir()
    found = job.progress(run)
    assert found == {"checkpoints": 25, "models/sft.work/output": 40}
    assert job.furthest({"checkpoints": 25}, found) == "models/sft.work/output 0 -> 40"
    assert job.furthest(found, found) == ""


def test_how_a_stage_ended(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "checkpoints").mkdir()

    def saves_then(error: BaseException, iteration: int) -> str:
        def execute() -> None:
            (tmp_path / "checkpoints/latest_checkpointed_iteration.txt").write_text(str(iteration))
            raise error

        return job.run_first(run, execute)

    assert job.run_first(run, lambda: None) == "done"
    assert saves_then(KeyboardInterrupt(), 5) == "advanced checkpoints 0 -> 5"
    assert saves_then(KeyboardInterrupt(), 5).startswith("stopped no newer checkpoint")
    assert saves_then(StageUnfinished("stage pretrain is not finished: saved"), 9) == "advanced checkpoints 5 -> 9"
    assert (
        saves_then(UserError("stage pretrain failed: no luck\n  log: x"), 20) == "failed stage pretrain failed: no luck"
    )
    assert saves_then(UserError("its log says: X is not finished"), 30).startswith("failed its log says")


FIT = preflight.Node("node1", 8, 8, 500, 100, 60, 0.0, 700_000, 20_000)
LIMITS = preflight.Limits(min_disk_gb=20, max_clock_off=2, slow_share=0.5, min_network=5000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus": 7}, "node3 sees 7 of 8 GPUs"),
        ({"disk_gb": 3}, "node3 has 3.0 GB free"),
        ({"clock_off": -3.5}, "node3 has a clock that is -3.5 s off"),
        ({"gflops": 300_000}, "node3 is slow: 300000 GFLOP/s, the median is 700000"),
        ({"network": 9000}, "node3 is slow: 9000 MB/s"),
        ({"network": 4000}, "node3 reaches 4000 MB/s"),
    ],
)
def test_preflight_names_the_node_that_is_not_fit(change, message):
    nodes = [replace(FIT, node=f"node{i}") for i in range(1, 5)]
    assert preflight.judge(nodes, LIMITS) == []
    nodes[2] = replace(nodes[2], **change)
    found = preflight.judge(nodes, LIMITS)
    assert any(line.startswith(message) for line in found) and all(line.startswith("node3 ") for line in found)


def test_preflight_of_two_nodes_compares_them_with_each_other():
    slow = replace(FIT, node="node2", gflops=100_000)
    assert preflight.judge([FIT, slow], LIMITS) == ["node2 is slow: 100000 GFLOP/s, node1 has 700000"]
    assert preflight.pairs(2) == [(0, 1)] and preflight.pairs(4) == [(0, 1), (1, 2), (2, 3), (3, 0)]


@pytest.mark.slow
def test_several_machines_without_slurm(tmp_path):
    """multinode.sh, with a shell in the place of ssh: trains, is asked to end, goes on to the end."""
    from benchmarks.made_up_data import bin_texts, write_texts
    from launch.pretraining.checkpoints import reached

    write_texts(tmp_path)
    run = tmp_path / "run"
    bin_texts(tmp_path, run)
    remote = tmp_path / "remote"
    remote.write_text('#!/bin/bash\nshift\nexec bash -c "$1"\n')
    remote.chmod(0o755)
    keys = ("nnodes=2", "nproc-per-node=1", "pipeline-model-parallel-size=1", "decoder-first-pipeline-num-layers=null")
    keys += ("train-iters=60", "log-interval=1", "eval-iters=1", "eval-interval=1000")
    command = ["launch/pretraining/multinode.sh", "--model", "qwen2-tiny", "--training", "demo", "--run", str(run)]
    command += [part for key in keys for part in ("--set", key)]

    def environment() -> dict[str, str]:
        return {
            **os.environ,
            "HOSTS": "one two",
            "ADDRESS": "127.0.0.1",
            "PORT": str(free_port()),
            "REMOTE": str(remote),
        }

    output = tmp_path / "output"
    with output.open("wb") as stream:
        started = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=stream, stderr=stream)
    log, deadline = run / "logs" / "host-0.log", time.monotonic() + 120
    others = [run / "logs" / "host-1.log", log]
    while not any(" iteration        3/" in path.read_text() for path in others if path.exists()):
        assert started.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    assert started.wait(120) == 0, output.read_text() + log.read_text()[-2000:]
    assert 3 <= reached(run / "checkpoints") < 60 and "stopped at iteration" in output.read_text()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert reached(run / "checkpoints") == 60
    bad = subprocess.run(
        [*command, "--set", "lrr=1"], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert bad.returncode == 1 and "error: one ended with 2; error: " in bad.stderr, bad.stderr


def test_jobs_of_a_run_are_told_with_their_state(tmp_path, monkeypatch, capsys):
    run = Run(tmp_path)
    entries = [
        {"id": 5, "stage": "sft", "submission": 1, "log": "old"},
        {"id": 8, "stage": "sft", "submission": 2, "log": "l"},
    ]
    write_json(submit.jobs_file(run), entries)
    known = {5: scheduler.Job(5, "FAILED", "1:00", ""), 8: scheduler.Job(8, "FAILED", "0:09", "")}
    monkeypatch.setattr(scheduler, "find_jobs", lambda ids: {i: known[i] for i in ids})
    assert submit.describe(*submit.states(run)["sft"]) == "job 8 FAILED: l"
    assert submit.cancel_run(run) == []
    assert read_json(submit.jobs_file(run)) == entries


def test_away_from_the_cluster_what_is_done_is_told_all_the_same(tmp_path):
    write_json(tmp_path / "pipeline.json", {"pipeline": "poetry-tiny", "stages": ["sft"]})
    write_json(tmp_path / "slurm/jobs.json", [{"id": 5, "stage": "sft", "submission": 1, "log": "l"}])
    command = [sys.executable, "-m", "launch.cli", "status", str(tmp_path)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PATH": "/nowhere"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sft          not done\nSlurm states unknown: squeue is not installed here")


def test_no_cluster_answers(tmp_path, monkeypatch):
    stub = tmp_path / "sbatch"
    stub.write_text("#!/bin/sh\necho 'sbatch: fatal: Could not establish a configuration source' >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"^Slurm does not answer \(fatal: Could not establish"):
        scheduler.test_only([], ["script"], dict(os.environ))

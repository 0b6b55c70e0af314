"""Pipelines are checked before they start; stages are skipped, redone, or fail with a reason."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifacts.errors import UserError
from artifacts.files import read_json
from artifacts.layout import Run
from launch.pipeline import definition as pipeline
from launch.pipeline import runner

REPOSITORY = Path(__file__).resolve().parents[2]
MYLLM = [sys.executable, "-m", "launch.cli"]

TWO_STAGES = """
name: two
values: {word: hello}
stages:
  first:
    commands: ["sh -c 'echo {word} > {run}/first; echo 3/7'"]
  second:
    needs: [first]
    commands: ["sh -c 'cat {run}/first > {run}/second; date +%N >> {run}/times'"]
"""


@pytest.fixture
def pipelines(tmp_path, monkeypatch):
    folder = tmp_path / "pipelines"
    folder.mkdir()
    monkeypatch.setattr(pipeline, "PIPELINES", folder)

    def add(name: str, text: str) -> None:
        (folder / f"{name}.yaml").write_text(text)

    return add


def run_all(run: Run, *replaced: str, name: str = "two") -> None:
    loaded = pipeline.load_pipeline(name, run.folder, list(replaced))
    runner.run_pipeline(loaded, run, loaded.stages)


def test_a_value_is_words_and_a_folder_is_one(pipelines, tmp_path):
    pipelines("words", "name: words\nvalues: {more: ''}\nstages: {a: {commands: ['tool {more} --to={run}/x {run}']}}")
    folder = tmp_path / "my runs" / "a"
    stage = pipeline.load_pipeline("words", folder, ["more=--set a=1"]).stages[0]
    assert stage.commands == [["tool", "--set", "a=1", f"--to={folder}/x", str(folder)]]


def test_an_option_is_left_out_while_its_value_is_the_pipelines_own(pipelines, tmp_path):
    pipelines("option", "name: option\nvalues: {size: 2}\nstages: {a: {commands: ['tool {--size} x']}}")

    def command(*replaced: str) -> list[str]:
        return pipeline.load_pipeline("option", tmp_path, list(replaced)).stages[0].commands[0]

    assert command() == command("size=2") == ["tool", "x"]
    assert command("size=3") == ["tool", "--size", "3", "x"]


def test_what_a_stage_reads_follows_a_value(pipelines, tmp_path):
    read = "megatron_configs/hardware/{machine}.yaml"
    text = f"name: r\nvalues: {{machine: cpu}}\nstages: {{a: {{commands: [ls], reads: ['{read}']}}}}"
    pipelines("r", text)
    stage = pipeline.load_pipeline("r", tmp_path, ["machine=node-8"]).stages[0]
    assert stage.reads == [REPOSITORY / "megatron_configs" / "hardware" / "node-8.yaml"]
    with pytest.raises(UserError, match=r"hardware/node8.yaml, which does not exist \(did you mean 'node-8.yaml'"):
        pipeline.load_pipeline("r", tmp_path, ["machine=node8"])


def test_done_is_skipped_and_changed_is_redone(pipelines, tmp_path, capsys):
    pipelines("two", TWO_STAGES)
    run = Run(tmp_path / "run")
    run_all(run)
    assert (run.folder / "second").read_text() == "hello\n"
    run_all(run)
    assert capsys.readouterr().out.count("done before, skipped") == 2
    assert len((run.folder / "times").read_text().splitlines()) == 1
    run_all(run, "word=bye")
    assert (run.folder / "second").read_text() == "bye\n"
    manifest = runner.read_manifest(run, "first")
    assert manifest is not None and manifest.status == "done"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: two\nstage: {}", "unknown key 'stage' \\(did you mean 'stages'"),
        ("name: two\nstages: {a: {comands: [ls]}}", "unknown key 'comands' \\(did you mean 'commands'"),
        ("name: two\nstages: {a: {commands: [ls], needs: [b]}}", "needs 'b', which is not an earlier stage"),
        ("name: two\nstages: {a: {commands: ['ls {rnu}']}}", "unknown placeholder {rnu} \\(did you mean 'run'"),
        ("name: two\nstages: {a: {commands: ['ls {--run}']}}", "unknown placeholder {--run}"),
        ("name: two\nstages: {a: {commands: [ls], reads: ['{rnu}.yaml']}}", "unknown placeholder {rnu}"),
        ("name: [", "is not YAML"),
    ],
)
def test_bad_pipelines_are_refused(pipelines, tmp_path, text, message):
    pipelines("two", text)
    with pytest.raises(UserError, match=message):
        pipeline.load_pipeline("two", tmp_path / "run")


def test_unknown_names_get_the_nearest(pipelines, tmp_path):
    pipelines("two", TWO_STAGES)
    with pytest.raises(UserError, match="did you mean 'two'"):
        pipeline.load_pipeline("tow", tmp_path)
    loaded = pipeline.load_pipeline("two", tmp_path)
    with pytest.raises(UserError, match="did you mean 'first'"):
        loaded.between("frist", None)
    with pytest.raises(UserError, match="comes after"):
        loaded.between("second", "first")
    with pytest.raises(UserError, match="did you mean 'word'"):
        pipeline.load_pipeline("two", tmp_path, ["wrod=x"])


def test_a_stage_cannot_start_before_what_it_needs(pipelines, tmp_path):
    pipelines("two", TWO_STAGES)
    loaded = pipeline.load_pipeline("two", tmp_path / "run")
    with pytest.raises(UserError, match="stage first is not done yet: run `myllm run two --from first`"):
        runner.run_pipeline(loaded, Run(tmp_path / "run"), loaded.between("second", None))


def test_a_failed_stage_names_itself_its_command_and_its_log(pipelines, tmp_path):
    pipelines("bad", "name: bad\nstages: {a: {commands: [\"sh -c 'echo error: no luck >&2; exit 3'\"]}}")
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match=r"stage a failed: no luck\n  command: sh .*\n  log: .*a\.log"):
        run_all(run, name="bad")
    assert read_json(run.manifests / "a.json")["status"] == "failed"


def test_two_runs_at_once_are_refused_and_what_a_kill_leaves_is_ended(pipelines, tmp_path):
    pipelines("slow", "name: slow\nstages: {a: {commands: [\"sh -c 'echo x > {run}/started; sleep 60'\"]}}")
    run = Run(tmp_path / "run")
    script = (
        "import sys; from pathlib import Path; from artifacts.layout import Run\n"
        "from launch.pipeline import definition as pipeline, runner\n"
        f"pipeline.PIPELINES = Path({str(tmp_path / 'pipelines')!r})\n"
        f"run = Run(Path({str(run.folder)!r})); p = pipeline.load_pipeline('slow', run.folder)\n"
        "runner.run_pipeline(p, run, p.stages)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    first = subprocess.Popen([sys.executable, "-c", script], env=environment, cwd=REPOSITORY)
    while not (run.folder / "started").exists():
        assert first.poll() is None
        time.sleep(0.05)
    with pytest.raises(UserError, match="in use by another"):
        run_all(run, name="slow")
    first.send_signal(signal.SIGKILL)  # the launcher only: its stage lives on
    first.wait()
    assert runner.processes_of(run)
    runner.end_left_over(run)
    deadline = time.monotonic() + 10
    while runner.processes_of(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runner.processes_of(run)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("progress 120/500 documents\n", (120, 500)),
        ("iteration       30/    1000 | x\n", (30, 1000)),
        (" 10%|█ | 5/50 [00:01<00:09]\r 20%|██| 10/50 [00:02<00:08]\r", (10, 50)),
        ("2026/11/23 nothing here\n", None),
        ("$ python -m x --set a=1/2\n", None),
    ],
)
def test_progress_is_read_from_any_tool(tmp_path, text, expected):
    log = tmp_path / "log"
    log.write_text(text)
    assert runner.last_progress(log) == expected


def test_help_is_quick_and_imports_nothing_heavy():
    """The overview imports nothing; a command's help imports its module, and no model library."""

    def imported(script: str) -> set[str]:
        script = f"import json, sys, launch.cli, launch.commands as c; {script}; print(json.dumps(sorted(sys.modules)))"
        output = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
        return set(json.loads(output.stdout))

    heavy = {"torch", "transformers", "megatron", "vllm", "opencompass"}
    assert not imported("c.overview()") & (heavy | {"numpy", "yaml"})
    assert not imported("[c.parser_for(name) for name in c.COMMANDS]") & heavy


def test_modules_import_without_torch():
    """Each in a child of its own, so that none profits from what another has imported."""
    ranks = ("launch.pretraining.worker", "launch.pretraining.attention")  # torch and Megatron are their own work
    folders = ("artifacts", "preprocess", "converters", "launch")
    names = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for folder in folders
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
    ]
    script = (
        "import importlib, os, sys\n"
        "for name in sys.argv[1:]:\n"
        "    if not os.fork():\n"
        "        importlib.import_module(name)\n"
        "        os._exit(len({'torch', 'megatron', 'vllm', 'opencompass'} & set(sys.modules)))\n"
        "    assert not os.wait()[1], name\n"
    )
    names = [name for name in names if name not in ranks]
    assert len(names) > 100
    subprocess.run([sys.executable, "-c", script, *names], cwd=REPOSITORY, check=True)


def test_commands_that_name_nothing_exist_with_two():
    for command in (
        ["run", "poetry-tin", "--dry-run"],
        ["run", "poetry-tiny", "--from", "sftt", "--dry-run"],
        ["status", "no"],
    ):
        result = subprocess.run([*MYLLM, *command], cwd=REPOSITORY, capture_output=True, text=True)
        assert result.returncode == 2 and result.stderr.startswith("error: ")
        assert len(result.stderr.strip().splitlines()) == 1


def test_dry_run_prints_every_command_and_runs_nothing(tmp_path):
    folder = tmp_path / "run"
    command = [*MYLLM, "run", "poetry-tiny", "--dry-run", "--run-folder", str(folder)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"--checkpoint {folder}/checkpoints" in result.stdout and not folder.exists()


def test_a_full_disk_is_one_line(capsys):
    import errno

    from artifacts.errors import run_main

    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "corpus/x.jsonl.zst")

    with pytest.raises(SystemExit) as stop:
        run_main(write)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: disk full while writing corpus/x.jsonl.zst: free some space")


@pytest.mark.parametrize(("command", "offline"), [("download", None), ("tokenizer", "1")])
def test_only_a_download_may_reach_for_the_hub(tmp_path, monkeypatch, command, offline):
    """A pipeline's download was refused, because every stage was told to stay offline."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = {}
    monkeypatch.setattr(runner.subprocess, "Popen", lambda *_, env, **__: found.update(env))
    with (tmp_path / "log").open("wb") as log:
        runner.start(["myllm", command, "--help"], runner.Run(tmp_path), log, tmp_path / "metrics.json")
    assert found.get("HF_HUB_OFFLINE") == offline


def test_a_process_without_the_mark_counts_if_a_marked_one_started_it(tmp_path):
    """vLLM's engine gives itself a title, which overwrites the environment that the mark stands in."""
    run = Run(tmp_path / "run")
    child = "import os, subprocess, sys; subprocess.run(['sleep', '60'], env={})"
    environment = {**os.environ, runner.MARK: str(run.folder.resolve())}
    marked = subprocess.Popen([sys.executable, "-c", child], env=environment)
    try:
        deadline = time.monotonic() + 10
        while len(found := runner.processes_of(run)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(found) == 2 and marked.pid in found
        assert runner.memory_mb(run) > 0
    finally:
        runner.end_left_over(run)
        marked.wait()
    assert not runner.processes_of(run)

"""`myllm eval` with the real OpenCompass: scores by an independent computation, kept, killed, refused, served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scoring_kit import TEMPLATE, Chat, questions, run, write_rows
from tiny_qwen2 import make_tiny_qwen2

from artifacts.errors import UserError
from artifacts.layout import REPOSITORY
from launch.scoring import evaluate, opencompass


def summed_loss(folder: Path, text: str) -> float:
    """Minus the log-likelihood of a text in nats, after its first token, by plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    if text.startswith("<|im_start|>"):
        assert ids[0, 0] == 1, "the special tokens of the template must be special ids"
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits[0, :-1]
    return float(-logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).sum())


@pytest.fixture(scope="module")
def scored(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base and a chat model, scored by `smoke_cpu` from an empty working folder, as a user would."""
    folder = tmp_path_factory.mktemp("scored")
    chat = make_tiny_qwen2(folder / "chat", seed=1)
    file = write_rows(folder / "next_line.jsonl", questions())
    (folder / "cwd").mkdir()
    arguments = [f"base={tiny}", f"dpo={chat}", "--suite", "smoke_cpu", "--questions", file, "--output", folder / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.scoring.evaluate", *map(str, arguments)],
        cwd=folder / "cwd",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MYLLM_METRICS": str(folder / "metrics.json")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {"folder": folder, "chat": chat, "arguments": arguments, "out": done.stdout}


@pytest.mark.slow
def test_real_scores(tiny: Path, scored: dict[str, Any]) -> None:
    output = scored["folder"] / "out"
    rows = json.loads((output / "scores.json").read_text())
    assert [(row["model"], row["suite"], row["n"], row["smoke"]) for row in rows] == [
        ("base", "next_line", 6, False),
        ("base", "ceval", 36, True),
        ("base", "cmmlu", 24, True),
        ("dpo", "next_line", 6, False),
        ("dpo", "ceval", 12, True),
        ("dpo", "cmmlu", 12, True),
    ]
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"] and row["chance"] == 25 and row["opencompass"] == "0.5.4"
        assert row["decontamination"] == "not checked" and len(row["config_hash"]) == 12
    assert [row["protocol"].split(":")[0] for row in rows] == ["ppl", "ppl", "ppl", "ppl", "gen", "gen"]
    assert list((scored["folder"] / "cwd").iterdir()) == [], "OpenCompass's litter must stay in the output folder"
    assert json.loads((scored["folder"] / "metrics.json").read_text())["questions"] == 96

    # The numbers are the likelihoods of context + choice, and of the ChatML text, by an independent computation.
    for name, folder in (("base", tiny), ("dpo", scored["chat"])):
        kept = json.loads((output / "predictions" / f"{name}-smoke_cpu-next_line.json").read_text())["predictions"]
        by_id = {row["id"]: row for row in kept}
        for row in questions()[:3]:
            prefix = row["context"] if name == "base" else TEMPLATE.format(row["instruction"])
            losses = [summed_loss(folder, prefix + choice) for choice in row["choices"]]
            assert list(by_id[row["id"]]["loss"].values()) == pytest.approx(losses, rel=1e-4)
            assert by_id[row["id"]]["prediction"] == "ABCD"[losses.index(min(losses))]


@pytest.mark.slow
@pytest.mark.skipif(not (REPOSITORY / ".venv-lmeval").exists(), reason="make env-lmeval")
def test_a_second_harness_agrees(tiny: Path, scored: dict[str, Any]) -> None:
    output = scored["folder"] / "out"
    command = [
        sys.executable,
        "-m",
        "launch.scoring.calibrate",
        f"base={tiny}",
        "--suite",
        "smoke_cpu",
        "--output",
        str(output),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["set"]: row for row in json.loads((output / "calibration.json").read_text())["sets"]}
    assert set(rows) == {"next_line", "ceval", "cmmlu"}
    assert rows["next_line"]["same"] == rows["next_line"]["n"] == 6
    for row in rows.values():  # random weights: letters may tie to the last digit of float32
        assert row["same"] >= 0.9 * row["n"] and row["low"] <= row["lm_eval"] <= row["high"]


@pytest.mark.slow
def test_kept_and_never_reused(
    tiny: Path, scored: dict[str, Any], warm: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Again: nothing is run. Another checkpoint under the same name: its result is not the old one."""
    output = scored["folder"] / "out"
    before = (output / "scores.json").read_text()
    monkeypatch.setattr(evaluate, "environment", lambda name: warm)
    monkeypatch.setattr(opencompass, "command", lambda config, work: ["/bin/sh", "-c", "echo 'ValueError: boom'"])
    assert run(monkeypatch, *scored["arguments"]) == 0
    assert capfd.readouterr().out.count("kept") == 6
    assert json.loads((output / "scores.json").read_text()) == json.loads(before)
    other = [str(argument).replace(str(scored["chat"]), str(tiny)) for argument in scored["arguments"]]
    with pytest.raises(
        UserError, match=r"dpo has no score in questions-next_line.*ValueError: boom; read .*opencompass\.log .2 mo"
    ):
        run(monkeypatch, *other)
    assert {row["model"] for row in json.loads((output / "scores.json").read_text())} == {"base"}, "no old score stays"
    (output / "scores.json").write_text(before)


IN_ENVIRONMENT = """
import sys
from pathlib import Path
from artifacts.command import run_command
from artifacts.errors import run_main
from launch.scoring import evaluate, opencompass
folder = Path(sys.argv.pop(1))
evaluate.environment = opencompass.environment = lambda name: folder
run_main(lambda: run_command(evaluate))
"""


def start(arguments: list[Any], log: Path, warm: Path | None = None) -> subprocess.Popen[bytes]:
    """`myllm eval`; with `warm`, the fixture of that name, OpenCompass has its imports made."""
    with log.open("wb") as stream:
        words = ["-c", IN_ENVIRONMENT, str(warm)] if warm else ["-m", "launch.scoring.evaluate"]
        command = [sys.executable, *words, *map(str, arguments)]
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=stream, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(scored: dict[str, Any], warm: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = [str(word).replace(str(scored["folder"] / "out"), str(output)) for word in scored["arguments"]]
    process = start(arguments, tmp_path / "log")
    first: list[Path] = []
    while not first:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
        first = list(output.glob("opencompass/smoke_cpu-*/out/*/predictions/base-*/questions-next_line.json"))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "scores.json").exists()
    time.sleep(1)  # the guard ends what was left
    made = first[0].stat().st_mtime_ns
    assert start(arguments, tmp_path / "log", warm).wait() == 0, (tmp_path / "log").read_text()
    assert first[0].stat().st_mtime_ns == made, "what was answered before is not asked again"
    assert "-r 20" in (tmp_path / "log").read_text()
    assert (output / "scores.json").read_bytes() == (scored["folder"] / "out" / "scores.json").read_bytes()


@pytest.mark.slow
def test_a_served_model_and_a_server_that_fails(tiny: Path, server: str, warm: Path, tmp_path: Path) -> None:
    python = str(REPOSITORY / ".venv-eval" / "bin" / "python")
    data = tmp_path / "data"
    made = [python, "-m", "eval_configs.smoke_data", "--output", str(data), "--whole"]
    subprocess.run(made, cwd=REPOSITORY, check=True, capture_output=True)
    arguments = [server, "--suite", "api_gen", "--sets", "chid", "--data", data, "--tokenizer", tiny]
    assert start([*arguments, "--output", tmp_path / "good"], tmp_path / "log", warm).wait() == 0, (
        tmp_path / "log"
    ).read_text()
    (row,) = json.loads((tmp_path / "good" / "scores.json").read_text())
    golds = [json.loads(line) for line in (data / "data/FewCLUE/chid/test_public.json").read_text().splitlines()]
    assert row["value"] == pytest.approx(100 * sum(gold["answer"] == 0 for gold in golds) / 7, abs=0.01)
    assert (row["n"], row["chance"], row["way"], row["smoke"]) == (7, 14.29, "api", True)
    (turn,) = Chat.asked[-1]["messages"]
    assert turn["role"] == "user" and turn["content"].endswith("答：\n"), "the turns of `chat_gen`"
    assert (Chat.asked[-1]["temperature"], Chat.asked[-1]["max_tokens"]) == (0, 32)

    Chat.status = 500
    assert start([*arguments, "--output", tmp_path / "bad"], tmp_path / "log", warm).wait() == 2
    told = (tmp_path / "log").read_text()
    assert "failed after retrying" in told.splitlines()[-1] and "opencompass.log" in told.splitlines()[-1]
    assert not (tmp_path / "bad" / "scores.json").exists()


DAMAGE = """
import os, shutil, sys
from pathlib import Path
from artifacts.errors import UserError
from eval_configs.plan import plan
from eval_configs.smoke_data import write_smoke

folder = Path(sys.argv[1])
exam = "data/ceval/formal_ceval/{0}/middle_school_geography_{0}.csv"
math = "data/cmmlu/test/elementary_mathematics.csv"


def lines(file, keep):
    file.write_text("".join(keep(file.read_text().splitlines(keepends=True))))


damages = {
    "nothing": lambda f: None,
    "a file is missing": lambda f: (f / exam.format("val")).unlink(),
    "too few examples": lambda f: lines(f / exam.format("dev"), lambda rows: rows[:4]),
    "no question": lambda f: lines(f / exam.format("val"), lambda rows: rows[:1]),
    "no answer": lambda f: lines(
        f / exam.format("val"), lambda rows: [row[:-3] + ",,\\n" if n else row for n, row in enumerate(rows)]
    ),
    "a column is missing": lambda f: lines(f / math, lambda rows: [r.rpartition(",")[0] + "\\n" for r in rows]),
}
for name, damage in damages.items():
    shutil.rmtree(folder / "data", ignore_errors=True)
    write_smoke(folder)
    damage(folder)
    os.environ["COMPASS_DATA_CACHE"] = str(folder)
    try:
        found = plan(Path("eval_configs/smoke_cpu.py"))
        print("told", name, sum(pair["n"] for pair in found["pairs"]))
    except UserError as error:
        print("told", name, "->", error)
"""


@pytest.mark.slow
def test_damaged_sets_are_refused_by_name(tiny: Path, warm: Path, tmp_path: Path) -> None:
    """The plan, in OpenCompass's environment: what its loaders let through would be a score of something else."""
    file = write_rows(tmp_path / "next_line.jsonl", questions())
    variables = {"MYLLM_EVAL_BASE": f"base={tiny}", "MYLLM_EVAL_QUESTIONS": str(file), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(warm / "bin" / "python"), "-c", DAMAGE, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, **variables, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    told = [line.removeprefix("told ") for line in done.stdout.splitlines() if line.startswith("told ")]
    assert len(told) == 6, done.stdout + done.stderr
    assert told[0] == "nothing 66"
    for line, reason in zip(
        told[1:],
        [
            "(ceval-middle_school_geography-ppl) cannot be loaded (FileNotFoundError",
            "has 3 examples, the prompt needs 5",
            "the set ceval (ceval-middle_school_geography-ppl)",
            "question 1: its answer is '', not one of A, B, C, D",
            "the set cmmlu (cmmlu-elementary_mathematics-ppl) cannot be loaded",
        ],
    ):
        assert reason in line, line


@pytest.mark.slow
def test_opencompass_runs_the_same_files_by_hand(tiny: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "next_line.jsonl", questions())
    program = str(REPOSITORY / ".venv-eval" / "bin" / "opencompass")
    variables = {"MYLLM_EVAL_BASE": f"base={tiny}", "MYLLM_EVAL_QUESTIONS": str(file), "PYTHONPATH": str(REPOSITORY)}
    with (tmp_path / "log").open("wb") as stream:
        subprocess.run(
            [program, str(REPOSITORY / "eval_configs" / "questions.py"), "-w", "out"],
            cwd=tmp_path,
            env={**os.environ, **variables},
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=True,
        )
    (summary,) = tmp_path.glob("out/*/summary/*.csv")
    row = summary.read_text().splitlines()[1].split(",")
    assert row[0] == "questions-next_line" and 0 <= float(row[-1]) <= 100


@pytest.mark.slow
def test_a_missing_set_is_named_before_a_model_is_loaded(tiny: Path, warm: Path, tmp_path: Path) -> None:
    arguments = [f"base={tiny}", "--suite", "base_ppl", "--data", tmp_path / "none", "--output", tmp_path / "out"]
    assert start(arguments, tmp_path / "log", warm).wait() == 2
    told = (tmp_path / "log").read_text().splitlines()[-1]
    assert told.startswith("error: the set ceval (ceval-computer_network-ppl) cannot be loaded")
    assert "`myllm download ceval`" in told

"""Scoring: intervals, refused input, an exit code that lies, results kept by identity, and the real OpenCompass."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_qwen2 import VERSES, make_tiny_qwen2

from artifacts.errors import UserError
from artifacts.layout import REPOSITORY
from artifacts.statistics import wilson
from eval_configs.smoke_data import SUBJECTS, write_ceval_smoke
from launch import score


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("score") / "tiny")


def questions(count: int = 6) -> list[dict[str, Any]]:
    """Four lines of five characters after a line of the same poem; the contexts differ in length on purpose."""
    lines = [line for verse in VERSES[:3] for line in verse.replace("，", "。").strip("。").split("。")]
    rows = []
    for number in range(count):
        choices = [lines[(number + 1 + step * 3) % 12] + "。" for step in range(4)]
        context = "，".join(lines[: 3 - number % 3]) + "，"
        instruction = f"“{lines[number % 12]}”的下一句是什么？"
        row = {"id": f"q{number}", "context": context, "choices": choices, "answer": number % 4}
        rows.append(row | {"instruction": instruction})
    return rows


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["score", *arguments])
    return score.main()


def test_wilson_interval() -> None:
    # Values of R's binom::binom.confint(…, methods = "wilson").
    assert wilson(50, 100) == pytest.approx((40.383, 59.617), abs=1e-3)
    assert wilson(0, 10) == pytest.approx((0.0, 27.753), abs=1e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"choices": ["一二。", "三四。", "五六。"]}, "four different choices"),
        ({"choices": ["一二。", "三四。", "五六。", "一二。"]}, "four different choices"),
        ({"choices": ["一二。", "三四。", "五六。", "七八九。"]}, "differ in length"),
        ({"answer": 4}, "answer of 0 to 3"),
        ({"context": None}, "needs a context"),
    ],
)
def test_broken_questions_are_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    first, second = questions(2)
    file = write_rows(tmp_path / "questions.jsonl", [first, second | change])
    with pytest.raises(UserError, match=f"questions.jsonl line 2.*{reason}"):
        score.read_questions(file)
    assert len(score.read_questions(file, limit=1)) == 1


def test_no_questions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        score.read_questions(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="holds no question"):
        score.read_questions(write_rows(tmp_path / "empty.jsonl", []))


def test_identity_follows_the_weights(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    before = score.read_model("base", tiny)
    assert score.read_model("base", copy).identity == before.identity
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert score.read_model("base", copy).identity != before.identity
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer.json does not exist"):
        score.read_model("base", copy)
    with pytest.raises(UserError, match="does not exist"):
        score.read_model("base", tmp_path / "nowhere")


def test_a_chat_model_is_asked_through_its_template(tiny: Path) -> None:
    rows = questions(1)
    texts, way = score.prefixes(score.read_model("sft", tiny), rows, plain=False)
    assert texts == [f"<|im_start|>user\n{rows[0]['instruction']}<|im_end|>\n<|im_start|>assistant\n"]
    assert "chat" in way
    assert score.prefixes(score.read_model("base", tiny), rows, plain=True)[0] == [rows[0]["context"]]
    with pytest.raises(UserError, match="'q0' has no 'instruction'"):
        score.prefixes(score.read_model("sft", tiny), [rows[0] | {"instruction": ""}], plain=False)


def test_smoke_data_is_four_choices_and_stable(tmp_path: Path) -> None:
    assert write_ceval_smoke(tmp_path / "a") == write_ceval_smoke(tmp_path / "b") == 12 * len(SUBJECTS)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.csv"))
    assert len(files) == 3 * len(SUBJECTS)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        for line in (tmp_path / "a" / file).read_text(encoding="utf-8").splitlines()[1:]:
            _, _, *choices, answer, _ = line.split(",")
            assert len(set(choices)) == 4 and answer in "ABCD"


def test_progress_counts_finished_bars_whole() -> None:
    head = "INFO - Calculating PPL for prompts labeled '{}'\n"
    step = "\r 50%|##   | 1/2 [00:01<00:01,  1.00s/it]"
    assert score.texts_done("", [100]) == 0
    assert score.texts_done(head.format("A") + step, [100]) == 64
    assert score.texts_done(head.format("A") + step + head.format("B"), [100]) == 100
    assert score.texts_done((head.format("A") + step) * 4 + "Map: 7/7 [00:00<00:00, 9.1 examples/s]", [100]) == 364


@pytest.mark.parametrize("script", ["echo 'ValueError: boom'; exit 0", "echo 'ValueError: boom'; exit 3"])
def test_success_without_results_is_a_failure(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    file = write_rows(tmp_path / "questions.jsonl", questions())
    monkeypatch.setattr(score, "opencompass_command", lambda work: ["/bin/sh", "-c", script])
    with pytest.raises(UserError, match=r"ValueError: boom; read .*opencompass\.log"):
        run(monkeypatch, "--model", f"base={tiny}", "--questions", str(file), "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "scores.json").exists()


def fake_results(work: Path, model: score.Model, n: int, accuracy: float) -> None:
    """OpenCompass's two files for a model, every answer A, every gold A."""
    loss = {f"label: {letter}": {"PPL": float(number)} for number, letter in enumerate("ABCD")}
    rows = {str(number): {**loss, "prediction": "A", "gold": "A"} for number in range(n)}
    for kind, value in (("results", {"accuracy": accuracy}), ("predictions", rows)):
        file = work / "out" / "20260101_000000" / kind / model.abbr / "next_line.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("n", "accuracy", "reason"),
    [(5, 100.0, "5 of 6 questions"), (6, 50.0, "says 50.0"), (6, math.nan, "holds no accuracy"), (6, 100.0, None)],
)
def test_results_are_counted(tiny: Path, tmp_path: Path, n: int, accuracy: float, reason: str | None) -> None:
    model = score.read_model("base", tiny)
    score.write_model_questions(tmp_path / "questions" / "base.jsonl", questions(6), ["，"] * 6)
    log = tmp_path / "log"
    log.write_text("nothing\n")
    fake_results(tmp_path, model, n, accuracy)
    if reason:
        with pytest.raises(UserError, match=reason):
            score.collect(tmp_path, model, score.NEXT_LINE, 6, log)
    else:
        right, rows = score.collect(tmp_path, model, score.NEXT_LINE, 6, log)
        assert right == 6 and {row["id"] for row in rows} == {f"q{number}" for number in range(6)}


def test_help_is_light() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "launch.score", "--help"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0 and "example:" in done.stdout
    assert not any(line.endswith((" torch", " opencompass", " transformers")) for line in done.stderr.splitlines())


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


@pytest.mark.slow
def test_real_opencompass(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    chat = make_tiny_qwen2(tmp_path / "chat", seed=1)
    rows = questions()
    file = write_rows(tmp_path / "questions.jsonl", rows)
    cwd, output = tmp_path / "cwd", tmp_path / "out"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    arguments = ["--model", f"base={tiny}", "--model", f"dpo={chat}", "--questions", str(file), "--output", str(output)]
    monkeypatch.setenv("MYLLM_METRICS", str(tmp_path / "metrics.json"))
    assert run(monkeypatch, *arguments) == 0
    scores = json.loads((output / "scores.json").read_text())
    assert [(row["model"], row["suite"], row["n"], row["smoke"]) for row in scores] == [
        ("base", "next_line", 6, False),
        ("base", "ceval_smoke", 36, True),
        ("dpo", "next_line", 6, False),
    ]
    assert all(row["low"] <= row["value"] <= row["high"] and row["chance"] == 25 for row in scores)
    assert list(cwd.iterdir()) == [], "OpenCompass's litter must stay in the output folder"
    assert json.loads((tmp_path / "metrics.json").read_text())["questions"] == 6

    # The numbers are the likelihoods of context + choice, and of the ChatML text, by an independent computation.
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    for name, folder in (("base", tiny), ("dpo", chat)):
        kept = json.loads((output / "predictions" / f"{name}-next_line.json").read_text())["predictions"]
        by_id = {row["id"]: row for row in kept}
        for row in rows[:3]:
            prefix = row["context"] if name == "base" else template.format(row["instruction"])
            losses = [summed_loss(folder, prefix + choice) for choice in row["choices"]]
            assert list(by_id[row["id"]]["loss"].values()) == pytest.approx(losses, rel=1e-4)
            assert by_id[row["id"]]["prediction"] == "ABCD"[losses.index(min(losses))]

    # Again: nothing is run. Another checkpoint under the same name: its result is not the old one.
    capfd.readouterr()
    monkeypatch.setattr(score, "opencompass_command", lambda work: ["/bin/false"])
    assert run(monkeypatch, *arguments) == 0
    assert capfd.readouterr().out.count("kept") == 3
    assert json.loads((output / "scores.json").read_text()) == scores
    with pytest.raises(UserError, match="ended with status 1"):
        run(monkeypatch, *[argument.replace(str(chat), str(tiny)) for argument in arguments])

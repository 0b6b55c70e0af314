"""`myllm eval`: intervals, refused input, exit codes that lie, results kept by identity, and the real OpenCompass."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scoring_kit import TEMPLATE, questions, run, write_rows

from artifacts.command import parser_of
from artifacts.errors import UserError
from artifacts.layout import REPOSITORY
from artifacts.statistics import wilson
from eval_configs import questions_data
from eval_configs.smoke_data import CEVAL, CMMLU, MARK, write_smoke
from launch.scoring import evaluate, opencompass
from launch.scoring import models as eval_models
from launch.scoring import results as eval_results


def pair(model: str = "base-1", n: int = 6, kind: str = "ppl", **more: Any) -> dict[str, Any]:
    ids = [f"q{number}" for number in range(n)]
    found = dict(
        model=model,
        dataset="next_line",
        set="next_line",
        entry="questions",
        kind=kind,
        shots=0,
        tokens=32,
        n=n,
        chance=25.0,
        ids=ids,
    )
    return found | dict(labels=list("ABCD"), config="c", data="d") | more


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
        ({"answer": 4}, "answer from 0 to 3"),
        ({"context": None}, "needs a context"),
    ],
)
def test_broken_questions_are_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    first, second = questions(2)
    file = write_rows(tmp_path / "questions.jsonl", [first, second | change])
    with pytest.raises(UserError, match=f"questions.jsonl line 2.*{reason}"):
        questions_data.read_questions(file)
    assert len(questions_data.read_questions(file, limit=1)) == 1


def test_no_questions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        questions_data.read_questions(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="has no questions"):
        questions_data.read_questions(write_rows(tmp_path / "empty.jsonl", []))


def test_a_chat_model_is_asked_through_its_template_in_the_same_order(tiny: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "next_line.jsonl", questions())
    plain, chat = (questions_data.load_rows(str(file), chat_of=folder) for folder in (None, str(tiny)))
    assert [row["id"] for row in plain] == [row["id"] for row in chat]
    by_id = {row["id"]: row for row in questions()}
    assert all(row["prefix"] == TEMPLATE.format(by_id[row["id"]]["instruction"]) for row in chat)
    assert all(row["prefix"] == by_id[row["id"]]["context"] for row in plain)
    lengths = [len(row["prefix"]) for row in plain]
    assert lengths == sorted(lengths) and len(set(lengths)) > 1
    with pytest.raises(UserError, match="'q0' has no 'instruction'"):
        questions_data.prompts([questions(1)[0] | {"instruction": ""}], str(tiny))


def test_identity_follows_the_weights(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    before = eval_models.read_model("base", tiny, "plain")
    assert eval_models.read_model("base", copy, "plain").identity == before.identity
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert eval_models.read_model("base", copy, "plain").identity != before.identity


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json does not exist"),
        (lambda f: (f / "model.safetensors").unlink(), r"holds no \*.safetensors"),
        (lambda f: shutil.rmtree(f), "does not exist"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}'),
            "lacks model-2.safetensors",
        ),
        (
            lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}'),
            "token_type_ids",
        ),
        (lambda f: (f / "chat_template.jinja").unlink(), "no chat_template.jinja"),
    ],
)
def test_a_model_that_cannot_be_scored_is_refused(tiny: Path, tmp_path: Path, damage: Any, reason: str) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(UserError, match=reason):
        eval_models.read_model("sft", copy, "chat")


def test_arguments_are_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, reason in [
        ([tiny, "--suite", "base_pl"], "no suite 'base_pl' .did you mean 'base_ppl'"),
        ([tiny, "--suite", "base_ppl", "--sets", "cval"], "no set 'cval' .did you mean 'ceval'"),
        ([tiny, "--suite", "questions", "--limit", "0"], "at least 1"),
        ([tiny, "--suite", "base_ppl", "--subjects", "0"], "--subjects 0: it must be at least 1"),
        ([tiny, tiny, "--suite", "questions"], "one name"),
        ([tiny, "--suite", "questions", "--plain", "sft"], "no MODEL is named 'sft'"),
        ([f"a/b={tiny}", "--suite", "questions"], "does not exist"),
        ([tiny, "--suite", "questions"], "give --output"),
        ([tmp_path / "none", "--suite", "questions"], "none does not exist"),
    ]:
        with pytest.raises(UserError, match=reason):
            run(monkeypatch, *words)


def test_smoke_data_is_four_choices_and_stable(tmp_path: Path) -> None:
    assert write_smoke(tmp_path / "a") == write_smoke(tmp_path / "b") == 12 * (len(CEVAL) + len(CMMLU))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.csv"))
    assert len(files) == 3 * len(CEVAL) + 2 * len(CMMLU)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        for line in (tmp_path / "a" / file).read_text(encoding="utf-8").splitlines()[1:]:
            _, _, *choices, answer = line.split(",")[:7]
            assert len(set(choices)) == 4 and answer in "ABCD"
    (tmp_path / "a" / MARK).unlink()
    with pytest.raises(UserError, match="not smoke"):
        write_smoke(tmp_path / "a")


def test_progress_counts_whole_sets_and_the_share_of_one(tmp_path: Path) -> None:
    pairs = [pair(n=100), pair(n=50, dataset="ceval-law-gen", kind="gen")]
    head = "INFO - Start inferencing [base-1/next_line]\n"
    bar, step = "Calculating PPL for prompts labeled 'A'\n", "\r 50%|##   | 1/2 [00:01<00:01,  1.00s/it]"
    assert opencompass.questions_done(tmp_path, "", pairs) == 0
    assert opencompass.questions_done(tmp_path, head + bar + step, pairs) == 12
    assert opencompass.questions_done(tmp_path, head + (bar + step) * 4, pairs) == 87
    done = tmp_path / "out" / "20260101_000000" / "predictions" / "base-1" / "next_line.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    second = "INFO - Start inferencing [base-1/ceval-law-gen]\n"
    assert opencompass.questions_done(tmp_path, head + bar + second + step, pairs) == 125


def fake_results(work: Path, accuracy: float, rows: dict[str, Any]) -> Path:
    """OpenCompass's two files for `pair()`; returns an empty log."""
    for kind, value in (("results", {"accuracy": accuracy}), ("predictions", rows)):
        file = work / "out" / "20260101_000000" / kind / "base-1" / "next_line.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(value))
    log = work / "opencompass.log"
    log.write_text("nothing\n")
    return log


def answers(n: int, loss: float = 1.0) -> dict[str, Any]:
    row = {f"label: {letter}": {"PPL": loss + number} for number, letter in enumerate("ABCD")}
    return {str(number): {**row, "prediction": "A", "gold": "A"} for number in range(n)}


@pytest.mark.parametrize(
    ("n", "accuracy", "loss", "reason"),
    [
        (5, 100.0, 1.0, "5 of 6 questions"),
        (6, 50.0, 1.0, "says 50.0"),
        (6, math.nan, 1.0, "holds no accuracy"),
        (6, 100.0, math.nan, "not a number"),
        (6, 100.0, 1.0, None),
    ],
)
def test_results_are_counted(tmp_path: Path, n: int, accuracy: float, loss: float, reason: str | None) -> None:
    log = fake_results(tmp_path, accuracy, answers(n, loss))
    if reason:
        with pytest.raises(UserError, match=reason):
            eval_results.collect(tmp_path, pair(), "base", log)
    else:
        rows = eval_results.collect(tmp_path, pair(), "base", log)
        assert all(row["right"] for row in rows) and [row["id"] for row in rows] == [f"q{n}" for n in range(6)]


def test_the_log_of_the_failed_task_is_told(tmp_path: Path) -> None:
    """Without --debug the reason stands in a task's own log, and OpenCompass's says only which task it was."""
    log = tmp_path / "opencompass.log"
    log.write_text(f"ValueError: of an earlier run\n{opencompass.BEGUN}now\nOpenICLInfer failed with code 1\n")
    assert opencompass.last_line(log) == "OpenICLInfer failed with code 1"
    own = tmp_path / "out" / "20260101_000000" / "logs" / "infer" / "base-1" / "ceval-law_0.out"
    own.parent.mkdir(parents=True)
    own.write_text("Traceback\nOSError: no such file\n")
    with pytest.raises(UserError, match=r"next_line.json is missing: OSError: no such file; read .*ceval-law_0.out"):
        eval_results.collect(tmp_path, pair(), "base", log)


def test_a_score_is_weighted_by_question_and_keeps_the_mean_of_subjects() -> None:
    right = [[True, True, True, False], [False]]
    predictions = [[{"right": hit} for hit in part] for part in right]
    more: dict[str, Any] = dict(model="m", way="plain", smoke=False, opencompass="0", cut=0, decontamination="")
    pairs = [pair(n=4), pair(n=1, chance=50.0)]
    score = eval_results.score_set("ceval", {"protocol": {"ppl": "p"}}, pairs, predictions, config="base_ppl", **more)
    assert (score.value, score.subject_mean, score.n, score.chance) == (60.0, 37.5, 5, 30.0)
    assert eval_results.verdict(score) == "at chance"
    assert eval_results.verdict(replace(score, unread=3)) == "not answered"
    assert eval_results.verdict(replace(score, low=31.0)) == "above chance"
    assert eval_results.verdict(replace(score, smoke=True, low=31.0)) == "smoke"


def test_decontamination_is_told_beside_the_score(tmp_path: Path) -> None:
    report = tmp_path / "poems.contaminated.json"
    report.write_text(
        json.dumps({"sets": [{"evaluation": "/x/data/ceval/formal_ceval/val/law_val.csv", "removed": 3}]})
    )
    entry = {"data": "data/ceval/formal_ceval"}
    assert evaluate.decontamination("ceval", entry, [report]) == "checked, 3 documents removed"
    assert evaluate.decontamination("cmmlu", {"data": "data/cmmlu"}, [report]) == "not checked"
    assert evaluate.decontamination("next_line", {}, [report]) == "not checked"


def test_a_short_download_is_refused() -> None:
    with pytest.raises(UserError, match="ceval has 6 questions, but 1,346 are published"):
        evaluate.check_counts(
            [pair(set="ceval", entry="ceval")], {"ceval": {"questions": 1346}}, limited=False, smoke=False
        )


def test_torn_files_of_a_killed_run_are_asked_again(tmp_path: Path) -> None:
    fake_results(tmp_path, 1.0, {})
    assert opencompass.earlier(tmp_path) == "20260101_000000"
    files = sorted((tmp_path / "out").rglob("*.json"))
    files[0].write_text('{"0": {"predic')
    opencompass.earlier(tmp_path)
    assert [file.exists() for file in files] == [False, True]


def test_a_server_is_asked_before_anything_starts(tiny: Path, server: str) -> None:
    model = eval_models.read_server("served", server, tiny)
    assert (model.served_name, model.positions, model.place) == ("tiny", 2048, server + "/v1")
    with pytest.raises(UserError, match="give --tokenizer"):
        eval_models.read_server("served", server, None)
    with pytest.raises(UserError, match="does not answer"):
        eval_models.read_server("served", "http://127.0.0.1:9", tiny)


def test_help_is_light() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "launch.scoring.evaluate", "--help"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0 and "myllm eval runs/" in done.stdout
    assert not any(line.endswith((" torch", " opencompass", " transformers")) for line in done.stderr.splitlines())


def test_a_job_for_a_cluster_is_the_same_command(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [tiny, "--suite", "base_ppl", "--output", tmp_path, "--slurm", "local-test", "--limit", 3, "--dry-run"]
    assert run(monkeypatch, *words) == 0
    told = capsys.readouterr().out
    assert f"-m launch.scoring.evaluate {tiny} --suite base_ppl --output {tmp_path} --limit 3 --dry-run\n" in told
    assert f"--output={tmp_path}/jobs/eval-base_ppl-%j.out" in told and "--mem=4000" in told and "gpus" not in told
    assert not (tmp_path / "jobs").exists()
    with pytest.raises(UserError, match="there is no site 'local-tets' .did you mean 'local-test'"):
        run(monkeypatch, tiny, "--suite", "base_ppl", "--output", tmp_path, "--slurm=local-tets")


def test_sets_are_given_in_either_form() -> None:
    parse = parser_of(evaluate).parse_args
    for words in (["--sets", "ceval,c3"], ["--sets", "ceval", "c3"], ["--sets", "ceval,", "c3"]):
        assert parse(["m", "--suite", "base_ppl", *words]).sets == "ceval,c3"
    assert parse(["m", "--suite", "base_ppl"]).sets == ""

"""`myllm eval`: intervals, refused input, exit codes that lie, results kept by identity, and the real OpenCompass."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny_qwen2 import VERSES, make_tiny_qwen2

from artifacts.errors import UserError
from artifacts.layout import REPOSITORY
from artifacts.statistics import wilson
from eval_configs import questions_data
from eval_configs.smoke_data import CEVAL, CMMLU, MARK, write_smoke
from launch.scoring import evaluate, opencompass
from launch.scoring import models as eval_models
from launch.scoring import results as eval_results

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


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


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    return evaluate.main()


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


class Chat(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that answers every question with `answer`, or with HTTP `status`."""

    status, answer = 200, "答案是：A"
    asked: list[dict[str, Any]] = []

    def reply(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "tiny", "object": "model", "max_model_len": 2048}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(asked)
        message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.answer}}
        self.reply(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [message]},
            200 if asked["max_tokens"] == 16 else self.status,  # alive when looked at, failing afterwards
        )

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Any:
    found = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    Chat.status = 200
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


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


# ---- the real OpenCompass ------------------------------------------------------------------------------------------


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
    tiny: Path, scored: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Again: nothing is run. Another checkpoint under the same name: its result is not the old one."""
    output = scored["folder"] / "out"
    before = (output / "scores.json").read_text()
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


def start(arguments: list[Any], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "launch.scoring.evaluate", *map(str, arguments)]
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=stream, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(scored: dict[str, Any], tmp_path: Path) -> None:
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
    assert start(arguments, tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()
    assert first[0].stat().st_mtime_ns == made, "what was answered before is not asked again"
    assert "-r 20" in (tmp_path / "log").read_text()
    assert (output / "scores.json").read_bytes() == (scored["folder"] / "out" / "scores.json").read_bytes()


@pytest.mark.slow
def test_a_served_model_and_a_server_that_fails(tiny: Path, server: str, tmp_path: Path) -> None:
    python = str(REPOSITORY / ".venv-eval" / "bin" / "python")
    data = tmp_path / "data"
    made = [python, "-m", "eval_configs.smoke_data", "--output", str(data), "--whole"]
    subprocess.run(made, cwd=REPOSITORY, check=True, capture_output=True)
    arguments = [server, "--suite", "api_gen", "--sets", "chid", "--data", data, "--tokenizer", tiny]
    assert start([*arguments, "--output", tmp_path / "good"], tmp_path / "log").wait() == 0, (
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
    assert start([*arguments, "--output", tmp_path / "bad"], tmp_path / "log").wait() == 2
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
def test_damaged_sets_are_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    """The plan, in OpenCompass's environment: what its loaders let through would be a score of something else."""
    file = write_rows(tmp_path / "next_line.jsonl", questions())
    python = str(REPOSITORY / ".venv-eval" / "bin" / "python")
    variables = {"MYLLM_EVAL_BASE": f"base={tiny}", "MYLLM_EVAL_QUESTIONS": str(file), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, "-c", DAMAGE, str(tmp_path)],
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
def test_a_missing_set_is_named_before_a_model_is_loaded(tiny: Path, tmp_path: Path) -> None:
    arguments = [f"base={tiny}", "--suite", "base_ppl", "--data", tmp_path / "none", "--output", tmp_path / "out"]
    assert start(arguments, tmp_path / "log").wait() == 2
    told = (tmp_path / "log").read_text().splitlines()[-1]
    assert told.startswith("error: the set ceval (ceval-computer_network-ppl) cannot be loaded")
    assert "`myllm download ceval`" in told

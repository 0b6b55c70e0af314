"""Comparison: exact tests against scipy, who may be compared with whom, bits per byte by an independent computation."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tiny_qwen2 import VERSES, make_tiny_qwen2

from artifacts.errors import UserError
from artifacts.files import read_yaml
from artifacts.layout import REPOSITORY
from artifacts.statistics import holm, mcnemar, paired_difference, ratio_interval
from launch.scoring import bits_per_byte, calibrate, compare
from launch.scoring import models as eval_models


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 9), (9, 3), (20, 20), (700, 900), (0, 40)])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_holm_adjusts_in_order_and_never_falls() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03), "holm") -> 0.03 0.06 0.06
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_the_interval_of_a_difference_covers_what_it_says() -> None:
    """Simulated: of 2,000 pairs of models with a known difference, about 95 % of the intervals hold it."""
    import numpy as np

    chance = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        cells = chance.multinomial(200, [0.3, 0.1, 0.2, 0.4])  # both, only first, only second, neither
        _, low, high = paired_difference(int(cells[1]), int(cells[2]), 200)
        held += low <= 10.0 <= high
    assert 0.93 <= held / 2000 <= 0.97


def test_a_ratio_of_sums_and_its_interval() -> None:
    assert ratio_interval([2.0, 2.0], [1.0, 1.0]) == (2.0, 2.0, 2.0)
    assert ratio_interval([2.0], [1.0]) == (2.0, -math.inf, math.inf)
    ratio, low, high = ratio_interval([1.0, 3.0, 5.0, 3.0], [1.0, 1.0, 2.0, 2.0])
    assert ratio == 2.0 and low < 2.0 < high and high - ratio == pytest.approx(ratio - low)


def write_score(folder: Path, model: str, right: list[bool], **changes: Any) -> None:
    """A predictions file as `myllm eval` writes it."""
    score = dict(
        model=model, suite="ceval", metric="accuracy", value=100 * sum(right) / len(right), n=len(right), low=1.0,
        high=99.0, chance=25.0, protocol="ppl: 5-shot", smoke=False, config="base_ppl", way="plain",
        subject_mean=None, cut=0, unread=0, config_hash="c", data_hash="d", opencompass="0.5.4",
        decontamination="not checked",
    )  # fmt: skip
    score |= {key: value for key, value in changes.items() if key in score}
    answer = changes.get("answer", "A")
    rows = [{"id": f"q{i}", "prediction": "A", "answer": answer, "right": hit} for i, hit in enumerate(right)]
    file = folder / "eval" / "predictions" / f"{model}-{score['config']}-{score['suite']}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"key": {}, "score": score, "predictions": rows, "files": []}))


def compared(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "launch.scoring.compare", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((Path(str(arguments[0])) / "eval" / "compare.json").read_text())


def test_models_are_compared_question_by_question(tmp_path: Path) -> None:
    write_score(tmp_path, "base", [True] * 10 + [False] * 30)
    write_score(tmp_path, "sft", [True] * 25 + [False] * 15)
    write_score(tmp_path, "dpo", [False] * 30 + [True] * 10, way="chat")
    report = compared(tmp_path)
    pairs = {pair["model"]: pair for pair in report["pairs"]}
    assert report["against"] == "base"
    assert (pairs["sft"]["only_model"], pairs["sft"]["only_against"]) == (15, 0)
    assert pairs["sft"]["difference"] == 37.5 and pairs["sft"]["verdict"] == "better"
    assert pairs["sft"]["p_adjusted"] == pytest.approx(2 * pairs["sft"]["p"])
    assert pairs["dpo"]["verdict"] == "no difference shown" and "prompted differently: chat" in pairs["dpo"]["asked"]

    text = (tmp_path / "eval" / "compare.md").read_text()
    assert "| sft | ceval | +37.5 |" in text and "Published by others, not measured here" in text
    assert all(row["model"] in text and row["source"] in text for row in read_yaml(compare.PUBLISHED))
    drawn = ElementTree.parse(tmp_path / "eval" / "compare.svg").getroot()
    assert sum(node.tag.endswith("circle") for node in drawn.iter()) == 3
    page = (tmp_path / "eval" / "compare.html").read_text()
    assert page.count("<svg") == 1 and not re.search(r"<script|<link|src=", page), "the page must need nothing else"


def test_only_the_same_questions_are_compared_and_smoke_never(tmp_path: Path) -> None:
    write_score(tmp_path, "base", [True, False])
    write_score(tmp_path, "data", [True, True], data_hash="e")
    write_score(tmp_path, "answers", [True, True], answer="B")
    write_score(tmp_path, "fewer", [True])
    write_score(tmp_path, "protocol", [True, True], config="base_gen")
    write_score(tmp_path, "base", [True, False], suite="cmmlu", smoke=True)
    write_score(tmp_path, "smoke", [True, True], suite="cmmlu", smoke=True)
    assert compared(tmp_path)["pairs"] == []


def test_runs_are_told_apart_and_what_is_missing_is_named(tmp_path: Path) -> None:
    write_score(tmp_path / "a", "base", [True, False])
    write_score(tmp_path / "b", "base", [True, True])
    report = compared(tmp_path / "a", tmp_path / "b", "--against", "b/base")
    assert [pair["model"] for pair in report["pairs"]] == ["a/base"]
    write_score(tmp_path / "other" / "b", "base", [True, True])
    twice = [tmp_path / "b", tmp_path / "other" / "b"]
    for words, reason in [
        ([tmp_path / "c"], "has no scores"),
        ([tmp_path / "a", "--against", "bas"], "'base'"),
        (twice, "2 of the runs are named 'b'"),
    ]:
        done = subprocess.run(
            [sys.executable, "-m", "launch.scoring.compare", *map(str, words)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and reason in done.stderr


@pytest.mark.parametrize(("length", "context"), [(2, 8), (8, 8), (9, 8), (50, 8), (257, 256), (1000, 256)])
def test_every_token_is_scored_once_with_half_a_context_before_it(length: int, context: int) -> None:
    scored = []
    for start, end, first in bits_per_byte.windows(length, context):
        assert end - start <= context
        scored += range(first, end)
        assert first - start >= min(first, context // 2)
    assert scored == list(range(1, length))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("compare") / "models" / "base")


def test_bits_per_byte_by_an_independent_computation(tiny: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = [VERSES[0], VERSES[1] + VERSES[2]]
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    command = [sys.executable, "-m", "launch.scoring.bits_per_byte", str(tiny), "--text", f"verse={file}"]
    done = subprocess.run([*command, "--output", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "bits_per_byte.json").read_text())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    bits = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer.encode("<|endoftext|>" + text)])
        assert ids[0, 0] == 0
        with torch.inference_mode():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        bits -= float(logs.gather(-1, ids[0, 1:, None]).sum()) / math.log(2)
    size = sum(len(text.encode()) for text in texts)
    assert row["bits_per_byte"] == pytest.approx(bits / size, abs=2e-4)
    assert (row["bytes"], row["documents"]) == (size, 2) and row["low"] <= row["bits_per_byte"] <= row["high"]


def test_a_long_document_is_read_in_windows(tiny: Path) -> None:
    """Batches and their padding change nothing, and a document longer than the context is scored whole."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny).eval()
    rows = [torch.randint(3, 300, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (600, 5, 90)]
    together = bits_per_byte.nats_of(model, rows, 256, 4, "cpu")
    alone = [bits_per_byte.nats_of(model, [row], 256, 1, "cpu")[0] for row in rows]
    assert together == pytest.approx(alone, rel=1e-4)
    assert together[0] / 599 > 0.5 * together[2] / 89, "no token of the long one is left out"


def test_texts_without_text_are_named(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "一"}\n{"body": "二"}\n')
    with pytest.raises(UserError, match="text.jsonl, line 2: `text` is missing"):
        bits_per_byte.read_sources([f"a={file}"], 10)
    with pytest.raises(UserError, match="must be SOURCE=FILE"):
        bits_per_byte.read_sources([str(file)], 10)


def test_calibration_takes_what_texts_have_in_common_as_context(tmp_path: Path) -> None:
    texts = {"0": {f"label: {k}": {"prompt": f"问题：甲{v}", "PPL": 1.0} for k, v in zip("ABCD", "一二三四")}}
    (tmp_path / "oc.json").write_text(json.dumps(texts))
    rows = [{"id": "q", "prediction": "A", "answer": "C", "right": False}]
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"files": ["oc.json"], "predictions": rows}))
    ((row,), predictions) = calibrate.questions_of(file, tmp_path)
    assert (row["context"], row["choices"], row["answer"]) == ("问题：甲", list("一二三四"), 2) and predictions == rows


def test_calibration_refuses_other_weights(tiny: Path, tmp_path: Path) -> None:
    identity = eval_models.read_model("base", tiny, "plain").identity
    with pytest.raises(UserError, match="holds no scores of base by base_ppl"):
        calibrate.scored_files(tmp_path, "base", identity, "base_ppl")
    write_score(tmp_path, "base", [True])
    content = json.loads((tmp_path / "eval/predictions/base-base_ppl-ceval.json").read_text())
    (tmp_path / "eval/predictions/base-base_ppl-ceval.json").write_text(
        json.dumps({**content, "key": {"model": "old"}})
    )
    with pytest.raises(UserError, match="of other weights"):
        calibrate.scored_files(tmp_path / "eval", "base", identity, "base_ppl")


def test_the_held_out_text_of_every_source_is_found(tmp_path: Path) -> None:
    """As `myllm binning --sources` leaves it."""
    for name in ("c4-zh-test.jsonl.zst", "zhwiki-test.jsonl.zst", "zhwiki-train.idx"):
        (tmp_path / name).touch()
    assert bits_per_byte.held_out(tmp_path) == [
        f"c4-zh={tmp_path}/c4-zh-test.jsonl.zst", f"zhwiki={tmp_path}/zhwiki-test.jsonl.zst"
    ]  # fmt: skip
    assert bits_per_byte.held_out(None) == []
    with pytest.raises(UserError, match="binning --sources"):
        bits_per_byte.held_out(tmp_path / "none")
    with pytest.raises(UserError, match="no text to measure on"):
        bits_per_byte.read_sources([], 5)

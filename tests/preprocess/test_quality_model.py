"""A quality model learns what the examples tell, says how far it agrees on held-out text, and scores a corpus."""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import pytest

from artifacts.command import parser_of
from artifacts.errors import UserError
from artifacts.files import read_json, read_jsonl, write_jsonl
from preprocess.cleaning import quality_model
from preprocess.cleaning.quality_model import BUCKETS, Model, chosen, features, judge_rows, rated, scores
from preprocess.corpora import pipeline

GOOD = "研究者比较了两种方法，发现后者更省时间。唐代的诗人游历四方，写下山川与离别。孩子们在操场上放风筝。".split("。")[
    :-1
]
BAD = "厂家直销量大从优，欢迎来电咨询。点击链接立即购买，全国包邮。加微信免费咨询，名额有限先到先得。".split("。")[:-1]


def texts(sentences: list[str], count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [
        "。".join(rng.choices(sentences, k=rng.randint(2, 6))) + f"，第{rng.randrange(10**6)}号。" for _ in range(count)
    ]


def write_model(folder: Path, weights: np.ndarray, bias: float = 0.0) -> Path:
    folder.mkdir()
    np.save(folder / "weights.npy", weights.astype(np.float32))
    (folder / "quality.json").write_text(json.dumps({"grams": [1, 2, 3], "bias": bias}))
    return folder


def words(*given: object) -> argparse.Namespace:
    return parser_of(quality_model).parse_args(list(map(str, given)))


def test_a_score_is_the_weight_of_its_n_grams() -> None:
    rng = np.random.default_rng(1)
    model = Model(rng.normal(size=BUCKETS).astype(np.float32), 0.25)
    many = ["春 风\n又绿", "", "江", *texts(GOOD, 20, 2)]
    together = scores(model, many)
    for text, score in zip(many, together.tolist()):
        buckets, counts = features([text])
        count = sum(max(0, len("".join(text.split())) - size + 1) for size in (1, 2, 3))
        assert counts.sum() == len(buckets) == count
        value = 0.25 + model.weights[buckets].astype(float).sum() / max(1, count) ** 0.5
        assert score == pytest.approx(1 / (1 + np.exp(-value)))


def test_a_model_learns_from_examples_and_agrees_on_held_out_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="run `make env-train`: this environment is older than its lock file")
    good, bad = texts(GOOD, 300, 3), texts(BAD, 200, 4)
    write_jsonl(tmp_path / "good.jsonl", [{"text": text} for text in good])
    write_jsonl(tmp_path / "bad.jsonl", [{"text": text} for text in bad])
    options = ("--good", tmp_path / "good.jsonl", "--bad", tmp_path / "bad.jsonl")
    quality_model.run(words("train", *options, "--output", tmp_path / "one"))
    told = read_json(tmp_path / "one/quality.json")["held_out"]
    assert told["good"] >= 15 and told["bad"] >= 10 and told["agrees"] > 0.95 and told["ranked"] > 0.95
    assert "held-out documents the model agrees on" in capsys.readouterr().out
    quality_model.run(words("train", *options, "--output", tmp_path / "two"))
    assert (tmp_path / "one/weights.npy").read_bytes() == (tmp_path / "two/weights.npy").read_bytes()
    # the same examples as one file with a score
    rows = [{"text": text, "metadata": {"stars": 4}} for text in good] + [{"text": text, "stars": 1} for text in bad]
    write_jsonl(tmp_path / "rated.jsonl", rows)
    options = ("--input", tmp_path / "rated.jsonl", "--score-key", "stars", "--good-from", 3)
    quality_model.run(words("train", *options, "--output", tmp_path / "three"))
    assert (tmp_path / "one/weights.npy").read_bytes() == (tmp_path / "three/weights.npy").read_bytes()


def test_a_model_of_labels_that_say_nothing_agrees_by_chance() -> None:
    pytest.importorskip("sklearn", reason="run `make env-train`: this environment is older than its lock file")
    rng = random.Random(5)
    alphabet = [chr(0x4E00 + code) for code in range(500)]
    examples = [("".join(rng.choices(alphabet, k=40)), number % 2 == 0) for number in range(1200)]
    found = quality_model.agreement(quality_model.learn(examples[:600]), examples[600:])
    assert 0.4 < found["agrees"] < 0.6 and 0.4 < found["ranked"] < 0.6


def test_rows_get_their_score_and_those_below_are_dropped(tmp_path: Path) -> None:
    weights = np.zeros(BUCKETS)
    weights[features(["坏"])[0]] = -100
    folder = str(write_model(tmp_path / "model", weights, bias=1.0))
    rows = [{"text": "好文章", "metadata": {"a": 1}}, {"text": "坏文章", "metadata": {}}]
    assert judge_rows(rows, folder, 0.5) == [None, "quality model below 0.5"]
    assert rows[0]["metadata"] == {"a": 1, "quality_model": 0.7311} and rows[1]["metadata"]["quality_model"] < 0.01
    assert judge_rows(rows, folder, None) == [None, None] and judge_rows([], folder, 0.5) == []


def test_a_corpus_keeps_what_the_model_keeps(tmp_path: Path) -> None:
    weights = np.zeros(BUCKETS)
    weights[features(["劣"])[0]] = -100
    model = write_model(tmp_path / "model", weights, bias=1.0)
    rows = [
        {"id": str(n), "text": f"第{n}篇文章，{'劣' if n % 4 == 0 else '佳'}作一件，{n * 37}字。"} for n in range(80)
    ]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    given = ["--source", "jsonl", "--input", str(tmp_path / "mine.jsonl"), "--tasks", "1", "--no-deduplicate"]
    given += ["--output-folder", str(tmp_path / "out"), "--quality-model", str(model), "--keep-quality", "0.5"]
    pipeline.run(parser_of(pipeline).parse_args(given))
    kept = [row for file in (tmp_path / "out/shards").glob("*") for row in read_jsonl(file)]
    assert len(kept) == 60 and {row["metadata"]["quality_model"] for row in kept} == {0.7311}
    card = read_json(tmp_path / "out/data_card.json")
    assert card["steps"]["quality-model"]["dropped"] == {"quality model below 0.5": 20}
    with pytest.raises(UserError, match="run with other keep_quality"):
        pipeline.run(parser_of(pipeline).parse_args([*given[:-1], "0.6"]))
    np.save(model / "weights.npy", weights.astype(np.float32) + 1)
    quality_model.load.cache_clear()
    with pytest.raises(UserError, match="run with other quality_model"):
        pipeline.run(parser_of(pipeline).parse_args(given))


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a quality model: make one with `myllm quality train"):
        quality_model.load(str(tmp_path))
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "文", "score": "high"}])
    with pytest.raises(UserError, match="document 1 has no number as 'score'"):
        list(rated(tmp_path / "rows.jsonl", "score", 1))
    with pytest.raises(UserError, match="only 0 bad documents"):
        chosen(iter([(text, True) for text in texts(GOOD, 30, 6)]), 100)
    both = texts(GOOD, 30, 7)
    with pytest.raises(UserError, match="30 texts are both good and bad"):
        chosen(iter([(text, good) for text in both for good in (True, False)]), 100)
    with pytest.raises(UserError, match="--input takes --good-from"):
        quality_model.files_of(words("train", "--input", "a", "--output", "b"))
    with pytest.raises(UserError, match="give examples"):
        quality_model.files_of(words("train", "--good", "a", "--output", "b"))
    given = ["--source", "jsonl", "--input", "x", "--output-folder", str(tmp_path), "--keep-quality", "0.5"]
    with pytest.raises(UserError, match="--keep-quality takes a score"):
        pipeline.run(parser_of(pipeline).parse_args(given))


def test_no_more_examples_than_asked_are_held_whatever_their_order() -> None:
    given = [(text, True) for text in texts(GOOD, 200, 8)] + [(text, False) for text in texts(BAD, 200, 9)]
    found = chosen(iter(given), 50)
    assert sum(good for _, good in found) == 50 and len(found) == 100
    assert found == chosen(iter(given[::-1] + given), 50)

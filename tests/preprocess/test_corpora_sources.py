"""Several corpora in one run: near duplicates across them, their card, their datasets, what is measured on them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.errors import UserError
from artifacts.files import read_json, read_jsonl, write_jsonl
from preprocess.corpora.source import make_source, option_by_source
from preprocess.sources.made_up_text import article

MYLLM = [sys.executable, "-m", "launch.cli"]


def myllm(folder: Path, *words: object, fails: bool = False) -> str:
    done = subprocess.run([*MYLLM, *map(str, words)], cwd=folder, capture_output=True, text=True)
    assert (done.returncode == 0) is not fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def text(number: int) -> str:
    title, parts = article(number)
    return "\n".join([title, *parts])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources of 60 articles: 20 of each are in the next one too, in other words or with the same id."""
    folder = tmp_path_factory.mktemp("several")
    longer = [f"{text(n)}全文完。" for n in range(40, 60)]  # near duplicates of the first source's
    write_jsonl(folder / "zhwiki.jsonl", [{"id": str(n), "text": text(n)} for n in range(60)])
    (folder / "wikipedia.json").write_text(
        json.dumps([{"completion": each, "source": "w"} for each in [*longer, *map(text, range(100, 140))]])
    )
    rows = [{"id": str(n), "text": text(200 + n)} for n in range(60)]  # zhwiki's ids, other articles
    question = "从四个选项里选出它的首都是哪一座城市"
    write_jsonl(folder / "mine.jsonl", [*rows, {"id": "leak", "text": text(300) + question}])
    write_jsonl(folder / "exam.jsonl", [{"question": question, "answer": "A"}])
    myllm(
        folder, "corpora", "--source", "zhwiki", "wikipedia_cn", "jsonl", "--input", "zhwiki=zhwiki.jsonl",
        "--input", "wikipedia_cn=wikipedia.json", "--input", "jsonl=mine.jsonl", "--evaluation", "exam.jsonl",
        "--output-folder", "clean", "--tasks", 2, "--workers", 2, "--set", "min_sentence_marks=0",
    )  # fmt: skip
    return folder


def shards(corpus: Path, source: str) -> list[dict]:
    return [row for file in sorted((corpus / "clean/shards" / source).glob("*")) for row in read_jsonl(file)]


def test_the_first_source_keeps_what_two_have(corpus: Path) -> None:
    assert len(shards(corpus, "zhwiki")) == 60
    assert {row["text"][:12] for row in shards(corpus, "wikipedia_cn")} == {text(n)[:12] for n in range(100, 140)}
    assert len(shards(corpus, "jsonl")) == 60, "the same id in two sources is no duplicate"


def test_the_card_tells_each_source(corpus: Path) -> None:
    card = read_json(corpus / "clean/data_card.json")
    found = {row["source"]: row for row in card["sources"]}
    assert [row["documents"] for row in card["sources"]] == [60, 40, 60] and card["documents"] == 160
    assert found["wikipedia_cn"]["dropped"] == {"deduplicate": 20} and found["zhwiki"]["dropped"] == {}
    assert found["jsonl"]["dropped"] == {"decontaminate": 1}
    assert "CC BY-SA" in found["zhwiki"]["licence"] and found["jsonl"]["licence"] == "not stated"
    page = (corpus / "clean/data_card.md").read_text()
    assert "| wikipedia_cn | 60 | 0 | 20 | 40 |" in page
    assert found["wikipedia_cn"]["repeats"] == {"zhwiki": 20} and found["jsonl"]["repeats"] == {}
    assert "| source | compared | repeat zhwiki | repeat wikipedia_cn | repeat jsonl |" in page
    assert "| wikipedia_cn | 60 | 20 (33.33%) | 0 (0.00%) | – |" in page
    told = read_json(corpus / "clean/evaluation.contaminated.json")
    assert told["sets"] == [{"evaluation": "exam.jsonl", "removed": 1}]


def test_other_sources_are_another_run(corpus: Path) -> None:
    said = myllm(
        corpus, "corpora", "--source", "zhwiki", "wikipedia_cn", "--input", "zhwiki=zhwiki.jsonl", "--input",
        "wikipedia_cn=wikipedia.json", "--output-folder", "clean", "--tasks", 2, fails=True,
    )  # fmt: skip
    assert "has a run with other sources" in said


@pytest.mark.slow
def test_their_datasets_and_held_out_text(corpus: Path) -> None:
    """One command bins every split of every source; a split that is too small is told and left out."""
    myllm(corpus, "tokenizer", "--sources", "clean/shards", "--output", "tokenizer", "--vocab-size", 600)
    options = ("--tokenizer", "tokenizer", "--workers", 2)
    shares = ("--valid", 0.05, "--test", 0.05)
    said = myllm(corpus, "binning", "--sources", "clean/shards", *options, "--output-folder", "dataset", *shares)
    card = read_json(corpus / "clean/data_card.json")
    made = {path.name.removesuffix(".idx") for path in (corpus / "dataset").glob("*.idx")}
    assert {"zhwiki-train", "jsonl-train", "wikipedia_cn-train"} <= made
    tested = sum(read_json(corpus / f"dataset/{name}.binning.json")["documents"] for name in made)
    assert tested == card["documents"]
    for name in ("zhwiki", "wikipedia_cn", "jsonl"):
        file = corpus / f"dataset/{name}-test.jsonl.zst"
        if f"{name}-test" in made:
            count = read_json(corpus / f"dataset/{name}-test.binning.json")["documents"]
            assert len(list(read_jsonl(file))) == count
        else:
            assert f"{name}-test: test has no document" in said and not file.exists()
    told = myllm(
        corpus, "blend", "--folder", "dataset", "--tokenizer", "tokenizer", "--sources", "zhwiki:3", "jsonl:1",
        "--train-tokens", "1e5", "--phase", "anneal",
    )  # fmt: skip
    blend = read_json(corpus / "dataset/blend-anneal.json")
    assert blend["train"] == ["0.750000", "dataset/zhwiki-train", "0.250000", "dataset/jsonl-train"], told
    one = ("--input", "clean/shards/zhwiki", *options, "--output-prefix", "dataset/none")
    wrong = myllm(corpus, "binning", *one, "--split", "test", "--test", "0.00001", fails=True)
    assert "zhwiki has 60 documents, and a share of 1e-05 leaves test without any: give --valid 0.2 --test 0.2" in wrong


def test_inputs_are_option_by_source(tmp_path: Path) -> None:
    assert option_by_source(["zhwiki"], ["a", "zhwiki=b"]) == {"zhwiki": ["a", "b"]}
    assert option_by_source(["a", "b"], ["b=x", "b=y"]) == {"a": [], "b": ["x", "y"]}
    with pytest.raises(UserError, match="write SOURCE=PATH, one of a, b"):
        option_by_source(["a", "b"], ["x"])
    with pytest.raises(UserError, match="--source a is given twice"):
        option_by_source(["a", "a"], [])
    made = make_source("ultra-fineweb-zh", ["x.parquet"], None, None, None)
    assert (made.reader, made.text_key, made.licence) == ("jsonl", "content", "Apache-2.0")
    with pytest.raises(UserError, match="alpaca-zh is not a corpus: its reader in sources.yaml is instructions"):
        make_source("alpaca-zh", ["x"], None, None, None)
    with pytest.raises(UserError, match="did you mean 'baidu-baike'"):
        make_source("baidu-bake", ["x"], None, None, None)

"""Blends: weights and tokens as Megatron reads them; datasets that are not what they say are refused."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import typed

from artifacts.errors import UserError
from artifacts.files import read_json, write_jsonl
from preprocess.dataset import blend
from preprocess.dataset.binning import bin_files
from preprocess.dataset.encoding import load_tokenizer
from preprocess.tokenizer import train as tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
CHARACTERS = "春风明月夜江山白云天人间花鸟雨雪山水长空秋色远寒松竹酒愁归客楼台草木清高深照流"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tokenizer, and datasets a (30 documents of 11 tokens), b (10 of 11), c (1)."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    texts = ["".join(rng.choices(CHARACTERS, k=10)) for _ in range(2000)]
    made = tokenizer.train(texts, 330, split_characters=True)
    (folder / "tokenizer").mkdir()
    tokenizer.save(made, folder / "tokenizer", "qwen2", model_max_length=256)
    for name, rows in (("a", texts[:30]), ("b", texts[30:40]), ("c", texts[40:41])):
        write_jsonl(folder / f"{name}.jsonl", ({"text": text} for text in rows))
        bin_files([folder / f"{name}.jsonl"], folder / "tokenizer", folder / name)
    (folder / "empty.idx").write_bytes((folder / "a.idx").read_bytes())
    (folder / "empty.bin").touch()
    return folder


def run(data: Path, *arguments: str) -> subprocess.CompletedProcess:
    return typed("preprocess.dataset.blend", "--folder", data, "--tokenizer", data / "tokenizer", *arguments)


def test_without_weights_sources_weigh_by_their_tokens(data):
    result = run(data, "--train", "a", "--train", "b", "--valid", "b", "--test", "c")
    assert result.returncode == 0, result.stderr
    made = read_json(data / "blend.json")
    report = read_json(data / "blend_report.json")["train"]
    counts = [report["sources"][name]["tokens"] for name in ("a", "b")]
    assert made["train"][1::2] == [str(data / "a"), str(data / "b")] and made["valid"] == ["1.000000", str(data / "b")]
    assert [float(w) for w in made["train"][::2]] == pytest.approx([n / sum(counts) for n in counts], abs=1e-6)
    assert report["tokens"] == sum(counts) and report["sources"]["a"]["documents"] == 30
    assert f"train: {sum(counts):,} tokens" in result.stdout


def test_weights_and_epochs(data):
    result = run(data, "--train", "a:1", "--train", "b:3", "--valid", "b", "--test", "c", "--train-tokens", "2000")
    assert result.returncode == 0, result.stderr
    assert read_json(data / "blend.json")["train"][::2] == ["0.250000", "0.750000"]
    sources = read_json(data / "blend_report.json")["train"]["sources"]
    assert sources["b"]["epochs"] == pytest.approx(1500 / sources["b"]["tokens"], abs=1e-3)
    assert sources["a"]["tokens_read"] == 500
    assert "more than 4 epochs" in result.stdout


def test_times_of_reading_decide_weights_and_length(data):
    result = run(data, "--train", "a:1x", "--train", "b:2.5x", "--valid", "b", "--test", "c")
    assert result.returncode == 0, result.stderr
    report = read_json(data / "blend_report.json")["train"]["sources"]
    assert [row["epochs"] for row in report.values()] == [1.0, 2.5]
    asked = report["a"]["tokens"] + 2.5 * report["b"]["tokens"]
    assert report["b"]["weight"] == pytest.approx(2.5 * report["b"]["tokens"] / asked)
    assert f"the run has {asked:,.0f} training tokens" in result.stdout


def test_megatron_takes_the_blend(data):
    run(data, "--train", "a:1", "--train", "b:3", "--valid", "b", "--test", "c")
    script = (
        "import sys, json; sys.path.insert(0, '.')\n"
        "from artifacts.megatron_on_cpu import patch_torch; patch_torch()\n"
        "from megatron.core.datasets.utils import get_blend_from_list\n"
        "made = json.load(open(sys.argv[1]))\n"
        "print(json.dumps({s: get_blend_from_list(made[s]) for s in made}))"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, str(data / "blend.json")],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    read = json.loads(output.splitlines()[-1])
    assert read["train"] == [[str(data / "a"), str(data / "b")], [0.25, 0.75]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "a:1", "--train", "b"], "--train b has no weight but others have"),
        (["--train", "a", "--train", "a"], "--train a is given twice"),
        (["--train", "a:-1"], "with a positive number"),
        (["--train", "a:x"], "with a positive number"),
        (["--train", "a:1", "--train", "b:1x"], "mixes PREFIX:WEIGHT and PREFIX:TIMESx"),
        (["--train", "a:1x", "--train-tokens", "1e6"], "contradicts the epochs given, which make 330 tokens: leave"),
        (["--train", "none"], "none.idx does not exist: write it first"),
        (["--train", "empty"], "empty.bin is empty"),
    ],
)
def test_wrong_blends_are_one_line(data, arguments, message):
    result = run(data, *arguments, "--valid", "b", "--test", "c")
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_datasets_of_another_tokenizer_or_cut_off_are_refused(data, tmp_path):
    loaded = load_tokenizer(data / "tokenizer")
    assert blend.read_back(data / "a", loaded, "<|endoftext|>")[0] == 30
    for suffix in (".bin", ".idx"):
        (tmp_path / f"a{suffix}").write_bytes((data / f"a{suffix}").read_bytes())
    ids = bytearray((data / "a.bin").read_bytes())
    (tmp_path / "a.bin").write_bytes(ids[:-2])
    with pytest.raises(UserError, match="ids but its .idx lists"):
        blend.read_back(tmp_path / "a", loaded, "<|endoftext|>")
    (tmp_path / "a.bin").write_bytes(ids[:-2] + b"\x00\x00")
    with pytest.raises(UserError, match="does not end with"):
        blend.read_back(tmp_path / "a", loaded, "<|endoftext|>")
    (tmp_path / "a.bin").write_bytes(b"\xff\xff" + ids[2:])
    with pytest.raises(UserError, match="has id 65535, but the tokenizer has only 330"):
        blend.read_back(tmp_path / "a", loaded, "<|endoftext|>")

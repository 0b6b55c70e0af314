"""Binning: the bytes of Megatron's own builder, whatever the workers, the engine, the kills and the broken rows."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from artifacts.errors import UserError
from artifacts.files import read_json, write_jsonl
from preprocess.dataset.binning import bin_files, cut
from preprocess.dataset.encoding import load_encoder, load_tokenizer
from preprocess.dataset.split import split_of
from preprocess.sources.lines import blocks
from preprocess.tokenizer import train as tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
CHARACTERS = "春风明月夜江山白云天人间花鸟雨雪山水长空秋色远寒松竹酒愁归客楼台草木清高深照流"
HARD = ["", " ", "a\u0301", "🙂‍", "\n\n", "x" * 5000, "天" * 5000, "\x00", "１２３", "𠮷", "▁ ▁", "it's", "\u3000"]

# An independent, slow writing of the same thing with Megatron's builder and transformers, as tools/preprocess_data.py
REFERENCE = """
import json, sys
sys.path.insert(0, '.')
from artifacts.megatron_on_cpu import patch_torch
patch_torch()
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from transformers import AutoTokenizer
source, folder, prefix = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
builder = IndexedDatasetBuilder(prefix + '.bin', dtype=DType.optimal_dtype(len(tokenizer)))
for line in open(source, encoding='utf-8'):
    ids = tokenizer(json.loads(line)['text'])['input_ids']
    lengths = [len(ids)] if ids else []
    if ids:
        ids.append(tokenizer.eos_token_id)
        lengths[-1] += 1
    builder.add_document(ids, lengths)
builder.finalize(prefix + '.idx')
"""


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    made = ["，".join("".join(rng.choices(CHARACTERS, k=5)) for _ in range(rng.randint(1, 12))) for _ in range(count)]
    return made + HARD


def write(path: Path, rows: list[str]) -> Path:
    write_jsonl(path, ({"text": text} for text in rows))
    return path


def dataset(prefix: Path) -> tuple[bytes, bytes]:
    return prefix.with_suffix(".bin").read_bytes(), prefix.with_suffix(".idx").read_bytes()


@pytest.fixture(scope="module", params=tokenizer.STYLES)
def folder(request, tmp_path_factory):
    made = tmp_path_factory.mktemp(request.param)
    built = tokenizer.train(texts(2000), 700, request.param)
    tokenizer.save(built, made, request.param, model_max_length=256)
    return made


def test_bytes_are_those_of_megatrons_builder(folder, tmp_path):
    source = write(tmp_path / "f.jsonl", texts(3000, seed=1))
    (tmp_path / "reference").mkdir()
    subprocess.run(
        [sys.executable, "-c", REFERENCE, str(source), str(folder), str(tmp_path / "reference" / "x")],
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    reference = dataset(tmp_path / "reference" / "x")
    for name, options in (
        ("one", {}),
        ("slow", {"engine": "tokenizers"}),
        ("shards", {"shard_bytes": 10_000}),
        ("workers", {"shard_bytes": 50_000, "workers": 2}),
    ):
        report = bin_files([source], folder, tmp_path / name / "x", **options)
        assert dataset(tmp_path / name / "x") == reference, name
        assert report["engine"] == ("tokenizers" if name == "slow" else "gigatoken")
    compressed = write(tmp_path / "f.jsonl.zst", texts(3000, seed=1))
    bin_files([compressed], folder, tmp_path / "zst" / "x")
    assert dataset(tmp_path / "zst" / "x") == reference


def test_a_literal_special_token_is_ordinary_text(folder, tmp_path):
    rows = ["一<|endoftext|>二", "<|im_start|>", "<|endoftext|>" * 3]
    loaded = load_tokenizer(folder)
    end = loaded.token_to_id(tokenizer.END_OF_TEXT)
    for engine in ("gigatoken", "tokenizers"):
        encoder = load_encoder(folder, engine)
        ids, lengths = encoder.documents(rows)
        assert ids.tolist().count(end) == len(rows)
        assert ids.tolist() == [i for row in rows for i in [*loaded.encode(row).ids, end]]
        assert lengths.sum() == len(ids)
        # without its end, a document decodes to what was written, literals included
        assert loaded.decode(ids[: lengths[0] - 1].tolist(), skip_special_tokens=False) == rows[0]


def test_shards_hold_every_line_once(tmp_path):
    rows = [text for text in texts(500) if len(text) < 1000]
    source = write(tmp_path / "f.jsonl", rows)
    whole = source.read_bytes().splitlines()
    for size in (1, 7, 100, 5000, 10**9):
        shards = cut([source], size)
        lines = [line for shard in shards for _, found in blocks(shard.path, shard.start, shard.end) for line in found]
        assert lines == whole, size


def test_lines_of_compressed_files_of_many_frames(tmp_path, monkeypatch):
    monkeypatch.setattr("preprocess.sources.lines.READ", 1000)
    monkeypatch.setattr("artifacts.files.CHUNK", 777)
    lines = [os.urandom(random.Random(i).randint(0, 300)).hex().encode() for i in range(300)]
    content = b"\n".join(lines)
    path = tmp_path / "f.zst"
    path.write_bytes(b"".join(zstandard.compress(content[i : i + 5000]) for i in range(0, len(content), 5000)))
    found = list(blocks(path))
    assert [line for _, batch in found for line in batch] == lines
    for offset, batch in found:
        assert content[offset:].startswith(batch[0])
    for cut_off in (1, 20, 2000):
        path.write_bytes(zstandard.compress(content)[:-cut_off])
        with pytest.raises(UserError, match="cut off"):
            list(blocks(path))


def test_engines_agree_on_random_unicode(folder):
    rng = random.Random(3)
    ranges = [(0x20, 0x7F), (0x4E00, 0x9FFF), (0x3000, 0x30FF), (0xFF00, 0xFFEF), (0x1F300, 0x1FAFF), (0, 0x2FFFF)]
    rows = []
    for _ in range(3000):
        points = [rng.randint(*rng.choice(ranges)) for _ in range(rng.randint(0, 30))]
        rows.append("".join(chr(p) for p in points if not 0xD800 <= p <= 0xDFFF))
    fast, slow = load_encoder(folder, "gigatoken"), load_encoder(folder, "tokenizers")
    for left, right in zip(fast.documents(rows), slow.documents(rows)):
        assert left.tolist() == right.tolist()


def test_a_tokenizer_that_gigatoken_reads_differently_is_encoded_by_tokenizers(folder, tmp_path, capsys):
    described = json.loads((folder / "tokenizer.json").read_text())
    described["normalizer"] = {"type": "Lowercase"}  # unknown to gigatoken, or not done by it
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(described))
    assert load_encoder(other, "auto", ["ABC"]).name == "tokenizers"
    assert "encoding with tokenizers" in capsys.readouterr().out
    with pytest.raises(UserError, match="--engine tokenizers"):
        load_encoder(other, "gigatoken", ["ABC"])


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_broken_rows_are_named_counted_and_stop_above_the_share(folder, tmp_path):
    good = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts(200)]
    bad = [b'{"text": "\xff\xfe"}', b'{"text": ', b'{"title": "x"}', b'{"text": 3}', b"[]", b'{"text": "\x00"}']
    lines = good[:50] + bad + [b""] + good[50:]
    source = tmp_path / "f.jsonl"
    source.write_bytes(b"\n".join(lines))  # the last line without its end
    with pytest.raises(UserError, match=r"f\.jsonl line 51 is invalid UTF-8.*6 of 219 rows.*--broken-allowed"):
        bin_files([source], folder, tmp_path / "x")
    assert not (tmp_path / "x.idx").exists()
    report = bin_files([source], folder, tmp_path / "x", broken_allowed=0.1)
    assert report["broken_rows"] == len(bad) and len(report["broken"]) == 5
    clean = tmp_path / "clean.jsonl"
    clean.write_bytes(b"\n".join(good))
    bin_files([clean], folder, tmp_path / "y")
    assert dataset(tmp_path / "x") == dataset(tmp_path / "y")


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_bad_input_names_file_and_mend(folder, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"")
    with pytest.raises(UserError, match=r"empty\.jsonl is empty"):
        bin_files([empty], folder, tmp_path / "x")
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        bin_files([tmp_path / "none.jsonl"], folder, tmp_path / "x")
    other = tmp_path / "other.jsonl.zst"
    other.write_bytes(b"not zstd at all")
    with pytest.raises(UserError, match=r"other\.jsonl\.zst is not a complete zstd file"):
        bin_files([other], folder, tmp_path / "x")
    truncated = write(tmp_path / "cut.jsonl.zst", texts(5000))
    truncated.write_bytes(truncated.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut\.jsonl\.zst is not a complete zstd file"):
        bin_files([truncated], folder, tmp_path / "x")
    with pytest.raises(UserError, match="the input has no text"):
        bin_files([write(tmp_path / "no.jsonl", ["", ""])], folder, tmp_path / "x")
    with pytest.raises(UserError, match="train a tokenizer first"):
        bin_files([write(tmp_path / "f.jsonl", ["一"])], tmp_path, tmp_path / "x")


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_killed_and_run_again_gives_the_same_bytes_and_redoes_no_shard(folder, tmp_path):
    source = write(tmp_path / "f.jsonl", texts(60_000))
    bin_files([source], folder, tmp_path / "whole")
    megabytes = source.stat().st_size >> 20
    command = [sys.executable, "-m", "preprocess.dataset.binning", "--input", str(source), "--tokenizer", str(folder)]
    command += ["--output-prefix", str(tmp_path / "x"), "--workers", "2", "--shard-megabytes", "1"]
    killed = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    shards = tmp_path / ".x.shards"
    deadline = time.monotonic() + 60
    while not list(shards.glob("0*.json")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "x.idx").exists()
    time.sleep(0.3)  # workers die with their parent
    done = {path.name: path.stat().st_mtime_ns for path in shards.glob("0*.json")}
    assert 1 <= len(done) <= megabytes
    time.sleep(0.5)
    assert {path.name: path.stat().st_mtime_ns for path in shards.glob("0*.json")} == done  # nobody writes on
    output = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    assert f"{len(done)} of {megabytes + 1} shards are already done" in output
    assert dataset(tmp_path / "x") == dataset(tmp_path / "whole")
    assert not shards.exists()
    assert read_json(tmp_path / "x.binning.json")["shards_found_done"] == len(done)
    again = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    assert "nothing to do" in again


def test_splits_of_a_folder_of_shards_are_apart_and_together_the_whole(folder, tmp_path):
    shards = tmp_path / "shards"
    rows = [{"id": f"d{i}", "text": f"春风{i}，明月{i}。"} for i in range(400)]
    write_jsonl(shards / "00000.jsonl.zst", rows[:250])
    write_jsonl(shards / "00001.jsonl", rows[250:])
    counts = {}
    for split in ("train", "valid", "test", None):
        prefix = tmp_path / f"{split}"
        command = [
            sys.executable,
            "-m",
            "preprocess.dataset.binning",
            "--input",
            str(shards),
            "--tokenizer",
            str(folder),
        ]
        command += ["--output-prefix", str(prefix), "--workers", "1"]
        command += ["--split", split, "--valid", "0.1", "--test", "0.2"] if split else []
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
        counts[split] = read_json(tmp_path / f"{split}.binning.json")["documents"]
    assert counts["valid"] == sum(split_of(row["id"], 0.1, 0.2) == "valid" for row in rows) > 20
    assert counts["test"] == sum(split_of(row["id"], 0.1, 0.2) == "test" for row in rows) > 40
    assert counts["train"] + counts["valid"] + counts["test"] == counts[None] == 400

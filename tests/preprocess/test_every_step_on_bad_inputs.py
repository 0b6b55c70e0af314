"""Every step that a user can type on the same bad inputs: it works, or says in one line what is wrong with which row.

The table INPUTS is the promise. "works": every row comes out, or is counted among the dropped ones. "row": one line
names the file and the row. "file": one line names the file. Never a traceback, and no row is lost in silence.
"""

import gzip
import json
import lzma
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard
from in_process import typed

from artifacts import files
from artifacts.files import read_json, read_jsonl
from launch.scoring import bits_per_byte
from preprocess.cleaning import simplify
from preprocess.corpora import data_card, pipeline
from preprocess.sources import shapes
from preprocess.tokenizer import train as tokenizer

FAULTS = Path(__file__).parent / "faults"
TEXTS = [row["text"][:80] for row in read_jsonl(FAULTS / "ids" / "part0.jsonl")]
ROWS = [{"id": f"a{i}", "text": text, "metadata": {"n": i}} for i, text in enumerate(TEXTS)]
COUNT = len(ROWS)
THIRD = 2  # index of the row that is bad in an input with one bad row


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def every(**changes: Any) -> bytes:
    """All rows with other values."""
    return lines([{**row, **changes} for row in ROWS])


def without(*keys: str) -> bytes:
    return lines([{key: value for key, value in row.items() if key not in keys} for row in ROWS])


def third(change: dict[str, Any] | bytes) -> bytes:
    """All rows, the third with other values, or another line in its place."""
    found = lines(ROWS).splitlines()
    found[THIRD] = change if isinstance(change, bytes) else lines([{**ROWS[THIRD], **change}]).strip()
    return b"\n".join(found) + b"\n"


@dataclass(frozen=True)
class Input:
    """The bytes of a file, and what becomes of them."""

    content: bytes | None  # None: there is no such file
    outcome: str  # works, row, file
    but: dict[str, str] = field(default_factory=dict)  # the steps with another outcome
    name: str = "F.jsonl"  # if it is in a folder, the folder is what the step is given
    rows: int = COUNT
    told: str = ""  # a pattern of the error
    at: int = THIRD + 1  # the line that the error names


NEEDS_TEXT = dict.fromkeys(("tokenizer", "binning", "bits-per-byte"), "file")  # nothing to learn from, or to measure
READS_LISTS = {"corpora": "works"}  # and objects over several lines: it is where raw files come in
READS_FOLDERS = dict.fromkeys(("corpora", "tokenizer", "binning"), "works")
ENCODED = "convert the file"
INPUTS: dict[str, Input] = {
    "no id": Input(without("id"), "works"),
    "no metadata": Input(without("metadata"), "works"),
    "nothing but text": Input(without("id", "metadata"), "works"),
    "metadata null": Input(every(metadata=None), "works"),
    "metadata a string": Input(every(metadata="百科"), "works"),
    "id a number": Input(lines([{**row, "id": i} for i, row in enumerate(ROWS)]), "works"),
    "id null": Input(every(id=None), "works"),
    "id empty": Input(every(id=""), "works"),
    "id a list": Input(every(id=[1]), "works"),
    "id the same in every row": Input(every(id="0"), "works"),
    "text missing": Input(third(b'{"id": "x"}'), "row"),
    "text null": Input(third({"text": None}), "row"),
    "text a list": Input(third({"text": ["a", "b"]}), "row"),
    "text empty": Input(third({"text": ""}), "works", {"bits-per-byte": "row"}),
    "a row that is a number": Input(third(b"3"), "row"),
    "empty file": Input(b"", "works", NEEDS_TEXT, rows=0),
    "only blank lines": Input(b"\n \r\n\n", "works", NEEDS_TEXT, rows=0),
    "blank lines between": Input(lines(ROWS).replace(b"\n", b"\n\n  \n"), "works"),
    "BOM": Input(b"\xef\xbb\xbf" + lines(ROWS), "works"),
    "CRLF": Input(lines(ROWS).replace(b"\n", b"\r\n"), "works"),
    "UTF-16": Input(lines(ROWS).decode().encode("utf-16"), "file", told=f"UTF-16, not UTF-8: {ENCODED}"),
    "GBK": Input(lines(ROWS).decode().encode("gbk"), "row", told=f"GBK, not UTF-8.*{ENCODED}", at=1),
    "a byte that is not UTF-8": Input(third(b'{"id": "x", "text": "\xff"}'), "row", told="invalid UTF-8"),
    "gzip named .jsonl": Input(gzip.compress(lines(ROWS)), "works"),
    "JSON lines named .jsonl.gz": Input(lines(ROWS), "works", name="F.jsonl.gz"),
    "gzip": Input(gzip.compress(lines(ROWS)), "works", name="F.jsonl.gz"),
    "xz": Input(lzma.compress(lines(ROWS)), "works", name="F.jsonl.xz"),
    "zstd that is cut": Input(zstandard.compress(lines(ROWS))[:-9], "file", name="F.jsonl.zst"),
    "a missing file": Input(None, "file"),
    "a folder": Input(lines(ROWS), "file", READS_FOLDERS, "F/part.jsonl"),
    "a JSON list": Input(json.dumps(ROWS, ensure_ascii=False).encode(), "row", READS_LISTS, "F.json", at=1),
    "a JSON list over lines": Input(json.dumps(ROWS, indent=1).encode(), "row", READS_LISTS, "F.json", at=1),
    "a list in an object": Input(json.dumps({"data": ROWS}).encode(), "row", READS_LISTS, "F.json", at=1),
    "pretty-printed rows": Input(
        "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(), "row", READS_LISTS, at=1
    ),
    "truncated last line": Input(lines(ROWS)[:-20], "row", told="not JSON", at=COUNT),
    "NaN": Input(every(score=float("nan"), metadata={"score": float("-inf")}), "works"),
    "a lone surrogate": Input(third(b'{"text": "\\ud83d' + TEXTS[THIRD].encode() + b'"}'), "works"),
    "an integer beyond 64 bits": Input(every(id=10**20, metadata={"big": 10**30}), "works"),
    "NUL, escaped": Input(third({"text": "\0" + TEXTS[THIRD]}), "works"),
    "NUL bytes": Input(third(b'{"id": "x", "text": "\0"}'), "row", told="NUL bytes"),
    "nested without end": Input(third(b'{"text": ' + b"[" * 100_000), "row", told="not JSON"),
}


@dataclass(frozen=True)
class Step:
    """A command: its module, its words for an input, and how many documents its results account for."""

    module: str
    words: Callable[[Path, Path], list[str | Path]]
    documents: Callable[[Path, str], int]


def in_and_out(source: Path, folder: Path) -> list[str | Path]:
    return ["--input", source, "--output", folder / "G.jsonl"]


def written(folder: Path, printed: str) -> int:
    """The rows of every file that a step wrote; each is whole, and can be read again."""
    found = [path for path in folder.rglob("*.jsonl*") if path.is_file()]
    assert found
    return sum(1 for path in found for row in read_jsonl(path) if row["id"] and isinstance(row["metadata"], dict))


def of_card(folder: Path, printed: str) -> int:
    card = read_json(folder / "corpus" / "data_card.json")
    out = [row for path in (folder / "corpus" / "shards").glob("*") for row in read_jsonl(path)]
    assert card["documents"] == len(out) == len({row["id"] for row in out})
    return len(out) + sum(sum(step["dropped"].values()) for step in card["steps"].values())


def of_tokenizer(folder: Path, printed: str) -> int:
    found = re.search(r": ([\d,]+) documents,", printed)
    return int(found[1]) if found else -1


STEPS = {
    "corpora": Step(
        "preprocess.corpora.pipeline",
        lambda source, folder: [
            *("--source", "jsonl", "--input", source, "--output-folder", folder / "corpus"),
            *("--tasks", "1", "--no-quality"),
        ],
        of_card,
    ),
    "simplify": Step("preprocess.cleaning.simplify", in_and_out, written),
    "clean": Step("preprocess.cleaning.clean", lambda *at: [*in_and_out(*at), "--rules", "prose"], written),
    "mask": Step("preprocess.cleaning.privacy", in_and_out, written),
    "deduplicate": Step("preprocess.deduplication.deduplicate", in_and_out, written),
    "deduplicate by lines": Step(
        "preprocess.deduplication.deduplicate", lambda *at: [*in_and_out(*at), "--by", "lines"], written
    ),
    "decontaminate": Step(
        "preprocess.deduplication.decontaminate",
        lambda *at: [*in_and_out(*at), "--evaluation", FAULTS / "bare.jsonl"],
        written,
    ),
    "split": Step(
        "preprocess.dataset.split",
        lambda source, folder: ["--input", source, "--output-folder", folder / "split", "--valid", "0.2"],
        written,
    ),
    "tokenizer": Step(
        "preprocess.tokenizer.train",
        lambda source, folder: [
            *("--input", source, "--output", folder / "T", "--vocab-size", "300", "--environments", "none"),
        ],
        of_tokenizer,
    ),
    "binning": Step(
        "preprocess.dataset.binning",
        lambda source, folder: [
            *("--input", source, "--tokenizer", folder.parent / "tokenizer", "--output-prefix", folder / "x"),
            *("--workers", "1", "--engine", "tokenizers"),
        ],
        lambda folder, printed: read_json(folder / "x.binning.json")["documents"],
    ),
    "bits-per-byte": Step(
        "launch.scoring.bits_per_byte",
        lambda source, folder: ["M", "--text", f"a={source}", "--output", folder],
        lambda folder, printed: read_json(folder / "bits_per_byte.json")[0]["documents"],
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tokenizer, for binning."""
    found = tmp_path_factory.mktemp("steps")
    (found / "tokenizer").mkdir()
    tokenizer.save(tokenizer.train(TEXTS, 400, "qwen2"), found / "tokenizer", "qwen2", model_max_length=256)
    return found


def in_this_process(settings: Any, inputs: Any, folder: Path, workers: int) -> None:
    """The stages of the corpora, without the executor's processes."""
    for _, tasks, blocks in pipeline.stages(settings, inputs, folder):
        for task in range(tasks):
            data = None
            for block in blocks:
                data = block.run(data, task, tasks)
            for _ in data:
                pass


def measured(name: str, folder: Path, sources: dict[str, list[str]], device: str) -> list[dict[str, Any]]:
    """What is measured on the texts, without a model."""
    figures = dict.fromkeys(("bits_per_byte", "low", "high", "bytes_per_token"), 1.0)
    return [{"model": name, "source": source, "documents": len(texts), **figures} for source, texts in sources.items()]


@pytest.fixture(autouse=True)
def reading_alone(monkeypatch):
    """Leave out what takes time and is not reading: other processes, a figure, a model, waiting for the disk."""
    monkeypatch.setattr(files, "_sync", lambda path: None)
    monkeypatch.setattr(bits_per_byte, "measure", measured)
    monkeypatch.setattr(simplify, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(pipeline, "run_local", in_this_process)
    monkeypatch.setattr(data_card, "figure", lambda card: "<svg/>")


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_works_or_names_what_is_wrong(place, step, name):
    given, command = INPUTS[name], STEPS[step]
    folder = place / re.sub(r"\W", "-", f"{step} {name}")
    folder.mkdir()
    file = place / f"input of {step}, {name}" / given.name
    source = file.parent if "/" in given.name else file
    file.parent.mkdir(parents=True)
    if given.content is not None:
        file.write_bytes(given.content)
    done = typed(command.module, *command.words(source, folder))
    outcome, said = given.but.get(step, given.outcome), done.stderr.strip()
    if outcome == "works":
        assert done.returncode == 0, said
        assert command.documents(folder, done.stdout) == given.rows
        return
    assert done.returncode == 2, done.stdout
    assert said.startswith("error: ") and "\n" not in said and str(source) in said, said
    if outcome == "row":
        assert re.search(rf" (line|row) {given.at}\b", said), said
    if step != "tokenizer":  # which reads a sample
        assert re.search(given.told, said), said


def corpora(source: str, given: Path, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The documents and the steps of the data card of `myllm corpora` on a file or folder."""
    words = ["--source", source, "--input", given, "--output-folder", folder, "--tasks", "2"]
    done = typed("preprocess.corpora.pipeline", *words)
    assert done.returncode == 0, done.stderr
    rows = [row for path in sorted((folder / "shards").glob("*")) for row in read_jsonl(path)]
    return rows, read_json(folder / "data_card.json")["steps"]


def test_ids_that_begin_at_0_in_each_file_cost_no_document(tmp_path):
    rows, steps = corpora("jsonl", FAULTS / "ids", tmp_path / "corpus")
    ids = [row["id"] for row in rows]
    assert len(rows) == len({row["text"] for row in rows}) == len(set(ids)) == 60
    assert sum(identity.isdigit() for identity in ids) == 20, "the first of an id keeps it"
    assert sum("@part" in identity for identity in ids) == 40, "the others are told by their file"
    assert steps["deduplicate"]["counts"] == {"ids that an earlier document has with another text, made unique": 40}
    assert "made unique: 40" in (tmp_path / "corpus" / "data_card.md").read_text()
    assert not any(steps[step]["dropped"] for step in steps) and set(rows[0]) == {"id", "text", "metadata"}


def test_ids_that_are_unique_stay_as_they_are(tmp_path):
    source = tmp_path / "F.jsonl"
    source.write_bytes(lines(ROWS + [{**ROWS[0], "id": "a0"}, {**ROWS[1], "id": "other"}]))
    rows, steps = corpora("jsonl", source, tmp_path / "corpus")
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    assert steps["deduplicate"]["dropped"] == {"same text": 2} and not steps["deduplicate"]["counts"]


def test_empty_ids_cost_no_document(tmp_path):
    rows, _ = corpora("jsonl", FAULTS / "ids-empty.jsonl", tmp_path / "corpus")
    assert len({row["id"] for row in rows}) == 20 and rows[0]["id"] == "jsonl/ids-empty/0"


def test_what_python_writes_is_read(tmp_path):
    rows, steps = corpora("jsonl", FAULTS / "nan.jsonl", tmp_path / "nan")
    assert len(rows) == 20 and not steps["read"]["dropped"]
    rows, _ = corpora("wudao", FAULTS / "wudao-big-ids.json", tmp_path / "big")
    assert [row["metadata"]["id"] for row in rows] == [str(10**20 + i) for i in range(20)]
    rows, steps = corpora("wudao", FAULTS / "wudao-surrogate.json", tmp_path / "surrogate")
    assert len(rows) == 20 and sum("\ufffd" in row["text"] for row in rows) == 1
    assert steps["read"]["counts"] == {"records with a lone surrogate, replaced by U+FFFD": 1}
    rows, _ = corpora("jsonl", FAULTS / "bare.jsonl", tmp_path / "bare")
    assert len(rows) == 2


def test_an_empty_shard_is_counted_and_is_no_bad_record(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "in" / "b.jsonl").write_bytes(b"")
    (tmp_path / "in" / "c.jsonl.zst").write_bytes(zstandard.compress(b""))
    rows, steps = corpora("jsonl", tmp_path / "in", tmp_path / "corpus")
    assert len(rows) == COUNT and steps["read"]["documents_in"] == COUNT and not steps["read"]["dropped"]
    assert steps["read"]["counts"] == {"files without a record": 2}


def test_a_row_goes_through_a_step_as_it_is(tmp_path):
    source = tmp_path / "F.jsonl"
    rows = [{**row, "big": 10**30, "half": "\ud83d", "score": float("nan"), "more": [10**20]} for row in ROWS]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = typed("preprocess.cleaning.privacy", *in_and_out(source, tmp_path))
    assert f"{source}: 20 rows had a lone surrogate" in done.stdout
    mended = {"big": 10**30, "half": "\ufffd", "score": None, "more": [10**20]}
    assert list(read_jsonl(tmp_path / "G.jsonl")) == [{**row, **mended} for row in ROWS]


def test_a_shares_split_that_is_empty_is_told(tmp_path):
    done = typed("preprocess.dataset.split", "--input", FAULTS / "bare.jsonl", "--output-folder", tmp_path)
    assert "test is empty: a share of 0.02 of these documents is less than one" in done.stdout
    assert "train=2" in done.stdout


def test_what_is_dropped_never_lands_in_the_output(tmp_path):
    source = tmp_path / "F.jsonl"
    source.write_bytes(lines([*ROWS, ROWS[0]]))
    done = typed("preprocess.deduplication.deduplicate", "--input", source, "--output", tmp_path / "G.json")
    assert done.returncode == 0 and len(list(read_jsonl(tmp_path / "G.json"))) == COUNT
    assert [row["dropped"] for row in read_jsonl(tmp_path / "G.json.dropped.jsonl")] == ["same text"]
    done = typed("preprocess.deduplication.deduplicate", "--input", source, "--output", tmp_path / "G.jsonl.gz")
    assert done.returncode == 2 and "G.jsonl.gz: rows are written as .jsonl or .jsonl.zst" in done.stderr
    assert not (tmp_path / "G.jsonl.gz").exists()


def half(record: dict[str, Any]) -> str:
    return str(record["text"]) + "\ud83d"


def test_a_users_own_function_may_give_half_a_character_or_nothing():
    shape = shapes.Shape(half, None, "id")
    assert shapes.document(shape, ROWS[0], "made")["text"] == TEXTS[0] + "\ufffd"
    with pytest.raises(shapes.WrongShape, match="the function returned no string"):
        shapes.document(shapes.Shape(lambda record: None, None, "id"), ROWS[0], "made")  # type: ignore[arg-type,return-value]

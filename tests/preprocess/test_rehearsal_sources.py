"""A rehearsal's files: made up in each published layout, and beginnings cut from real ones; every reader reads them."""

import bz2
import gzip
import json
from pathlib import Path

import pytest

from artifacts.errors import UserError
from artifacts.files import read_json, read_yaml
from launch.instructions import lint
from preprocess.corpora.source import make_source
from preprocess.sources import download, rehearsal
from preprocess.sources.made_up import made_names, write
from preprocess.sources.read import Piece, Problems, find_files, records
from preprocess.sources.shapes import SHAPES, document, shape_of
from preprocess.wiki.extract import extract

CORPORA = (
    "wikipedia-cn-filtered", "baidu-baike", "c4-zh", "wudao", "ultra-fineweb-zh", "ultra-fineweb-l3-zh",
    "fineweb-edu-chinese", "cci3-hq", "chinese-webtext2", "skypile", "fineweb2-zh", "chinese-cosmopedia", "map-cc",
)  # fmt: skip
# instruction and preference data: its kind, and how many of 100 made-up rows are faulty, and why
DATA = {
    "alpaca-zh": ("sft", 1, "`output` is empty"), "belle-1m": ("sft", 0, ""), "dpo-zh": ("pairs", 0, ""),
    "smoltalk-chinese": ("sft", 0, ""), "coig-cqia": ("sft", 0, ""), "infinity-instruct": ("sft", 0, ""),
    "minimind-sft": ("sft", 1, "the arguments of add in turn 3: not JSON"), "minimind-dpo": ("pairs", 0, ""),
    "r1-distill-zh": ("sft", 0, ""), "ultrafeedback-chinese": ("pairs", 3, "none is better than another"),
}  # fmt: skip


def cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    monkeypatch.setenv("MYLLM_CACHE", str(folder))
    return folder


def fill(name: str, there: Path, here: Path, size: int = 3_000_000) -> str:
    source, below = download.load_source(name), download.source_file(name).relative_to(download.cache_folder())
    return rehearsal.fill_source(name, source, there / below, here / below, size, 60)


def texts(name: str) -> list[str]:
    source = make_source(name, [], None, None, None)
    shape, problems = shape_of(source.reader, source.text_key), Problems()
    found = [
        document(shape, record, "x")["text"]
        for path, _ in find_files(source.inputs)
        for _, record in records(Piece(path), problems, 1 << 20)
    ]
    assert not problems.counts
    return found


@pytest.mark.parametrize("name", CORPORA)
def test_a_made_up_corpus_is_read_by_its_reader(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = cache(monkeypatch, tmp_path / "here")
    assert fill(name, tmp_path / "there", here) == "made up, 60 documents"
    found = texts(name)
    assert len(found) == 60 and len({*found}) >= 55
    assert all(len(text) > 20 for text in found)


@pytest.mark.parametrize("name", CORPORA)
def test_the_beginning_of_a_download_is_whole_records(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = cache(monkeypatch, tmp_path / "there")
    fill(name, tmp_path / "none", there)
    every = texts(name)
    here = cache(monkeypatch, tmp_path / "here")
    assert "downloaded files" in fill(name, there, here, size=9000)
    found = texts(name)
    assert 2 <= len(found) < len(every) and {*found} <= {*every}


@pytest.mark.parametrize("name", DATA)
def test_made_up_data_has_the_form_and_the_faults_of_the_real(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(monkeypatch, tmp_path)
    source = download.load_source(name)
    assert source["reader"] == "instructions"
    (file,) = made_names(source, 1)
    write(name, source, tmp_path / name, [file], 100)
    kind, faulty, why = DATA[name]
    found = lint.lint(tmp_path / name / file)
    assert found.form.kind == kind and found.rows == 100
    assert len(found.faults) == faulty and all(why in text for _, text in found.faults), found.faults
    assert bool(found.repeats) == (name == "alpaca-zh")


def test_every_source_can_be_made_up_or_is_shipped() -> None:
    entries = read_yaml(download.SOURCES)
    readers = {name: source["reader"] for name, source in entries.items() if "unpack" not in source}
    assert {name for name, reader in readers.items() if reader == "instructions"} == {*DATA}
    assert {name for name, reader in readers.items() if reader in SHAPES} == {*CORPORA}


def test_a_made_up_dump_and_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = cache(monkeypatch, tmp_path / "there")
    fill("zhwiki", tmp_path / "none", there)
    every = extract(there / "zhwiki", tmp_path / "every.jsonl", 2)
    assert every["pages"] == 60 and every["pages_with_text"] == 58  # two redirects
    index = bz2.open(there / "zhwiki" / download.load_source("zhwiki")["files"][1], "rt", encoding="utf-8").readlines()
    offset = int(index[-1].partition(":")[0])
    dump = (there / "zhwiki" / download.load_source("zhwiki")["files"][0]).read_bytes()
    assert b"<page>" in bz2.BZ2Decompressor().decompress(dump[offset:])
    here = cache(monkeypatch, tmp_path / "here")
    assert "first" in fill("zhwiki", there, here, size=20_000)
    part = extract(here / "zhwiki", tmp_path / "part.jsonl", 1)
    assert 0 < part["pages"] < 60
    assert (tmp_path / "every.jsonl").read_text().startswith((tmp_path / "part.jsonl").read_text())


def test_a_cut_json_list_and_compressed_lines_end_well(tmp_path: Path) -> None:
    rows = [{"text": "字" * 50, "n": n} for n in range(100)]
    (tmp_path / "list.json").write_text("\ufeff" + json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    rehearsal.head(tmp_path / "list.json", tmp_path / "cut.json", 1000)
    assert read_json(tmp_path / "cut.json") == rows[:6]
    with gzip.open(tmp_path / "lines.json.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    rehearsal.head(tmp_path / "lines.json.gz", tmp_path / "cut.json.gz", 1000)
    with gzip.open(tmp_path / "cut.json.gz", "rt") as stream:
        assert [json.loads(line) for line in stream] == rows[:4]


def test_a_set_that_is_nowhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache(monkeypatch, tmp_path)
    source = download.load_source("ceval")
    with pytest.raises(UserError, match="ceval is not downloaded, and --made-sets has no made-up one"):
        rehearsal.fill_set("ceval", source, tmp_path / "there", tmp_path / "here", tmp_path / "made")
    with pytest.raises(UserError, match="no made-up sample of its layout is known"):
        write("chinese-poetry", download.load_source("chinese-poetry"), tmp_path, ["x"], 3)

"""Corpora: extraction, cleaning, duplicates and splits on made-up text; errors name the file and the mend."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from made_up_poems import documents, poem

from artifacts.errors import UserError
from artifacts.files import atomic_file, atomic_folder, read_jsonl, sha256, write_jsonl
from preprocess.cleaning import clean
from preprocess.dataset import split
from preprocess.deduplication import deduplicate
from preprocess.wiki import extract as extract_wiki

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("markup", "resolved"),
    [
        ("-{zh-hans:计算机; zh-hant:電腦}-", "计算机"),
        ("-{zh-tw:記憶體; zh-cn:内存}-", "内存"),
        ("-{zh-tw:記憶體; zh-hk:記憶}-", "記憶體"),
        ("甲-{乙}-丙", "甲乙丙"),
        ("-{zh-hans:外-{内}-; zh-hant:外}-", "外内"),
        ("a &lt;b&gt; -{R|原文}-", "a &lt;b&gt; 原文"),
    ],
)
def test_language_variants_are_resolved(markup, resolved):
    assert extract_wiki.resolve_variants(markup) == resolved


def test_the_sample_dump_becomes_clean_text(tmp_path):
    target = tmp_path / "wiki.jsonl"
    command = [sys.executable, "-m", "preprocess.wiki.extract", "--output", str(target)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    rows = list(read_jsonl(target))
    assert len(rows) == 12
    text = "\n".join(row["text"] for row in rows)
    for leftover in ("-{", "}-", "{{", "[[", "（）", "（；", "重定向", "'''", "<ref"):
        assert leftover not in text
    assert "计算机" in text and "当涂" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<mediawiki><page></mediawiki>", "not whole XML"),
        ("<mediawiki></mediawiki>", "has no <page>"),
        ("", "not whole XML"),
    ],
)
def test_broken_dumps_name_the_file(tmp_path, content, message):
    dump = tmp_path / "dump.xml"
    dump.write_text(content)
    with pytest.raises(UserError, match=message):
        extract_wiki.prepare(dump, tmp_path / "out.xml")


def test_truncated_bz2_names_the_file(tmp_path):
    import bz2

    dump = tmp_path / "dump.xml.bz2"
    dump.write_bytes(bz2.compress(b"<mediawiki><page>x</page></mediawiki>" * 1000)[:-20])
    with pytest.raises(UserError, match=r"dump\.xml\.bz2"):
        extract_wiki.prepare(dump, tmp_path / "out.xml")


def test_prose_rules():
    def reason(text: str) -> str | None:
        return clean.prose({"text": text, "metadata": {}})

    good = "唐诗是唐朝诗人所作诗歌的总称，今存约五万首，作者两千余人。"
    assert reason(good) is None
    assert reason("太短。") == "too short"
    assert reason("This page is in English, and so it goes.") == "not mostly Chinese"
    assert reason("\n".join(["点击这里查看更多内容", "广告位招租请联系"] * 3)) == "repeated lines"


def test_duplicates_and_leaks_go(tmp_path):
    rows = documents(200)
    again = {**rows[0], "id": "again"}
    half = {**rows[1], "id": "half", "text": "".join([poem(1, 7)[0], poem(999, 7)[0]])}
    source = tmp_path / "all.jsonl.zst"
    write_jsonl(source, [*rows, again, half])
    reasons: Counter = Counter()
    kept = [row["id"] for row, reason in deduplicate.deduplicate(source, reasons) if reason is None]
    assert "again" not in kept and "half" not in kept and len(kept) == len(rows)
    # a training poem that repeats a held-out poem's line is dropped, whatever its id
    held_out = next(row for row in rows if split.split_of(row["id"], 0.1, 0.1) == "test")
    leak = next(i for i in range(1000) if split.split_of(f"leak-{i}", 0.1, 0.1) == "train")
    row = {**rows[3], "id": f"leak-{leak}", "text": held_out["text"].split("。")[0] + "。" + "".join(poem(777))}
    write_jsonl(source, [*rows, row])
    command = [
        sys.executable,
        "-m",
        "preprocess.dataset.split",
        "--input",
        str(source),
        "--output-folder",
        str(tmp_path),
    ]
    subprocess.run([*command, "--valid", "0.1", "--test", "0.1"], cwd=REPOSITORY, check=True, capture_output=True)
    parts = {name: [r["id"] for r in read_jsonl(tmp_path / f"{name}.jsonl.zst")] for name in split.SPLITS}
    assert row["id"] not in parts["train"]
    assert sorted(sum(parts.values(), [])) == sorted(r["id"] for r in rows)


def test_a_broken_row_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "一"}\n{"text": \n')
    with pytest.raises(UserError, match=r"rows\.jsonl line 2 is not JSON"):
        list(read_jsonl(path))


def test_files_are_whole_or_absent(tmp_path):
    target = tmp_path / "file"
    with pytest.raises(RuntimeError), atomic_file(target) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder") as aside:
        (aside / "x").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(tmp_path):
    source = tmp_path / "source.jsonl.zst"
    write_jsonl(source, documents(20_000))
    whole, output = tmp_path / "whole.jsonl.zst", tmp_path / "output.jsonl.zst"

    def command(target: Path) -> list[str]:
        module = [
            sys.executable,
            "-m",
            "preprocess.cleaning.clean",
            "--rules",
            "examples.poetry.rules.verse",
            "--input",
            str(source),
        ]
        return [*module, "--output", str(target)]

    subprocess.run(command(whole), cwd=REPOSITORY, check=True, capture_output=True)
    killed = subprocess.Popen(command(output), cwd=REPOSITORY, start_new_session=True)
    partial = output.with_name(f".{output.name}.partial")
    deadline = time.monotonic() + 60
    while not partial.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not output.exists()
    subprocess.run(command(output), cwd=REPOSITORY, check=True, capture_output=True)
    assert sha256(output) == sha256(whole)


def test_a_zstd_file_that_was_cut_off_is_told(tmp_path):
    path = tmp_path / "rows.jsonl.zst"
    rows = [{"text": f"{number}" * 50} for number in range(5000)]
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == rows
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="is not a complete zstd file"):
        list(read_jsonl(path))

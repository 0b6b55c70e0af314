"""Corpora: from a tarball to indexed datasets, on made-up poems; bad input names the file and the mend."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest

from artifacts import verse
from artifacts.errors import UserError
from artifacts.files import atomic_file, atomic_folder, read_jsonl, sha256, write_jsonl
from preprocess import extract_poems, poem_tasks
from preprocess.cleaning import clean
from preprocess.dataset import split
from preprocess.deduplication import deduplicate
from preprocess.wiki import extract as extract_wiki

REPOSITORY = Path(__file__).resolve().parents[2]
CHARACTERS = "春风明月夜江山白云天人间花鸟雨雪山水长空秋色远寒松竹酒愁归客楼台草木清高深照流"


def poem(seed: int, length: int = 5, lines: int = 4) -> list[str]:
    rng = random.Random(seed)
    made = ["".join(rng.choices(CHARACTERS, k=length)) for _ in range(lines)]
    return [f"{made[i]}，{made[i + 1]}。" for i in range(0, lines, 2)]


def documents(count: int) -> list[dict]:
    return [
        {
            "id": f"poem-{i}",
            "text": "".join(poem(i, 5 + 2 * (i % 2), 4 + 4 * (i % 3 == 0))),
            "metadata": {"title": "詩", "author": "陆游", "dynasty": "song", "line_length": 5 + 2 * (i % 2)},
        }
        for i in range(count)
    ]


def tarball(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            information = tarfile.TarInfo(name)
            information.size = len(content)
            archive.addfile(information, io.BytesIO(content))
    return path


def test_poems_are_read_from_the_tarball(tmp_path):
    content = json.dumps(
        [{"author": "甲", "title": "乙", "paragraphs": ["一二三四五，六七八九十。"], "id": "x"}]
    ).encode()
    path = tarball(tmp_path / "p.tgz", {"package/dist/quantangshi/poet.song.1000.json": content})
    rows = list(extract_poems.documents(path))
    assert rows == [
        {
            "id": "song-001000",
            "text": "一二三四五，六七八九十。",
            "metadata": {"title": "乙", "author": "甲", "dynasty": "song"},
        }
    ]


def test_bad_tarballs_name_the_file(tmp_path):
    not_json = tarball(tmp_path / "a.tgz", {"package/dist/quantangshi/poet.tang.0.json": b"[{"})
    with pytest.raises(UserError, match=r"a\.tgz: package/dist/quantangshi/poet\.tang\.0\.json is not JSON"):
        list(extract_poems.documents(not_json))
    whole = tarball(tmp_path / "b.tgz", {"package/dist/quantangshi/poet.tang.0.json": os.urandom(100_000)}).read_bytes()
    (tmp_path / "b.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b\.tgz is not a whole tarball"):
        list(extract_poems.documents(tmp_path / "b.tgz"))
    with pytest.raises(UserError, match="holds no poems"):
        list(extract_poems.documents(tarball(tmp_path / "c.tgz", {"package/README.md": b"x"})))


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
        ("<mediawiki></mediawiki>", "holds no <page>"),
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


def test_verse_rules():
    def reason(text: str) -> str | None:
        return clean.verse({"text": text, "metadata": {}})

    assert reason("".join(poem(1))) is None
    assert reason("".join(poem(1, lines=2))) == "number of lines"
    assert reason("春风，明月夜江山。白云天人间，花鸟雨雪山。") == "line length"
    assert reason("春风明□夜，江山白云天。人间花鸟雨，雪山水长空。") == "lacuna or foreign character"


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


def test_tasks_ask_only_what_is_known():
    poems = documents(300)
    by_id = {row["id"]: clean.verse_lines(row["text"]) for row in poems}
    for question in poem_tasks.next_line_questions(poems, 50, random.Random(1)):
        lines = by_id[question["id"]]
        assert question["choices"][question["answer"]] == lines[-1] + "。"
        assert len({len(choice) for choice in question["choices"]}) == 1
        assert len(set(question["choices"])) == poem_tasks.CHOICES
        assert question["context"].endswith(lines[-2] + "，")
    for pair in poem_tasks.preference_pairs(poems, 50, random.Random(1)):
        chosen, rejected = clean.verse_lines(pair["chosen"]), clean.verse_lines(pair["rejected"])
        assert chosen != rejected and set(chosen) <= set(sum(by_id.values(), [])) and len(chosen) == len(rejected)
        assert len(pair["chosen"]) == len(pair["rejected"])
    rows = poem_tasks.instructions(poems, 100, random.Random(1))
    assert len(rows) == 100 and all(row["instruction"] and row["output"] for row in rows)


def test_verse_is_asked_for_in_every_form_as_often_and_answered_in_the_form_asked():
    poems = [row for row in documents(3000) if len(clean.verse_lines(row["text"])) in verse.FORMS]
    poems = [{**row, "text": f"{poem_tasks.form_of(row)}：{row['text']}"} for row in poems]
    common = [row for row in poems if poem_tasks.form_of(row) == "七绝"]
    rare = [row for row in poems if poem_tasks.form_of(row) == "五绝"]
    assert common and rare
    mixture = common * 20 + rare  # a corpus in which one form is rare
    asked = Counter()
    for row in poem_tasks.instructions(mixture, 400, random.Random(1)):
        form = next((form for form in ("五绝", "七绝") if f"{form}。" in row["instruction"]), None)
        if form:
            asked[form] += 1
            assert row["output"].startswith(f"{form}：")
    assert 0.5 < asked["五绝"] / asked["七绝"] < 2
    pairs = poem_tasks.form_pairs(mixture, 100, random.Random(1))
    assert len(pairs) == 100
    for pair in pairs:
        form = next(form for form in ("五绝", "七绝") if f"{form}。" in pair["instruction"])
        assert pair["chosen"].startswith(f"{form}：") and not pair["rejected"].startswith(f"{form}：")
    assert poem_tasks.form_pairs(common, 100, random.Random(1)) == []  # nothing to prefer where there is one form


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
        module = [sys.executable, "-m", "preprocess.cleaning.clean", "--rules", "verse", "--input", str(source)]
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
    with pytest.raises(UserError, match="is not a whole zstd file"):
        list(read_jsonl(path))

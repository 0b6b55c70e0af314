"""The poetry example's corpus and tasks: what is read, what is kept, and what is asked."""

import io
import json
import os
import random
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from made_up_poems import documents, poem

from artifacts.errors import UserError
from examples.poetry import extract, form, rules, tasks, verse


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
    rows = list(extract.documents(path))
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
        list(extract.documents(not_json))
    whole = tarball(tmp_path / "b.tgz", {"package/dist/quantangshi/poet.tang.0.json": os.urandom(100_000)}).read_bytes()
    (tmp_path / "b.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b\.tgz is not a complete tarball"):
        list(extract.documents(tmp_path / "b.tgz"))
    with pytest.raises(UserError, match="has no poems"):
        list(extract.documents(tarball(tmp_path / "c.tgz", {"package/README.md": b"x"})))


def test_verse_rules():
    def reason(text: str) -> str | None:
        return rules.verse({"text": text, "metadata": {}})

    assert reason("".join(poem(1))) is None
    assert reason("".join(poem(1, lines=2))) == "number of lines"
    assert reason("春风，明月夜江山。白云天人间，花鸟雨雪山。") == "line length"
    assert reason("春风明□夜，江山白云天。人间花鸟雨，雪山水长空。") == "lacuna or foreign character"


def test_tasks_ask_only_what_is_known():
    poems = documents(300)
    by_id = {row["id"]: verse.verse_lines(row["text"]) for row in poems}
    for question in tasks.next_line_questions(poems, 50, random.Random(1)):
        lines = by_id[question["id"]]
        assert question["choices"][question["answer"]] == lines[-1] + "。"
        assert len({len(choice) for choice in question["choices"]}) == 1
        assert len(set(question["choices"])) == tasks.CHOICES
        assert question["context"].endswith(lines[-2] + "，")
    for pair in tasks.preference_pairs(poems, 50, random.Random(1)):
        chosen, rejected = verse.verse_lines(pair["chosen"]), verse.verse_lines(pair["rejected"])
        assert chosen != rejected and set(chosen) <= set(sum(by_id.values(), [])) and len(chosen) == len(rejected)
        assert len(pair["chosen"]) == len(pair["rejected"])
    rows = tasks.instructions(poems, 100, random.Random(1))
    assert len(rows) == 100 and all(row["instruction"] and row["output"] for row in rows)


def test_verse_is_asked_for_in_every_form_as_often_and_answered_in_the_form_asked():
    poems = [row for row in documents(3000) if len(verse.verse_lines(row["text"])) in verse.FORMS]
    poems = [{**row, "text": f"{tasks.form_of(row)}：{row['text']}"} for row in poems]
    common = [row for row in poems if tasks.form_of(row) == "七绝"]
    rare = [row for row in poems if tasks.form_of(row) == "五绝"]
    assert common and rare
    mixture = common * 20 + rare  # a corpus in which one form is rare
    asked = Counter()
    for row in tasks.instructions(mixture, 400, random.Random(1)):
        form = next((form for form in ("五绝", "七绝") if f"{form}。" in row["instruction"]), None)
        if form:
            asked[form] += 1
            assert row["output"].startswith(f"{form}：")
    assert 0.5 < asked["五绝"] / asked["七绝"] < 2
    pairs = tasks.form_pairs(mixture, 100, random.Random(1))
    assert len(pairs) == 100
    for pair in pairs:
        form = next(form for form in ("五绝", "七绝") if f"{form}。" in pair["instruction"])
        assert pair["chosen"].startswith(f"{form}：") and not pair["rejected"].startswith(f"{form}：")
    assert tasks.form_pairs(common, 100, random.Random(1)) == []  # nothing to prefer where there is one form


def test_verse_form_counts_lines():
    rows = [
        {"text": "五绝：春风明月夜，江山白云天。", "form": "五绝", "line_length": 5},
        {"text": "花鸟雨雪山水，", "form": "五绝", "line_length": 5},
    ]
    found = form.verse_form([*rows, {"text": "", "form": "七律", "line_length": 7}])
    assert found["n"] == 4 and found["value"] == 50 and found["low"] < 50 < found["high"]

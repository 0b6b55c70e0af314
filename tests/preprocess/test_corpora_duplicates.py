"""Near duplicates by planted pairs, memory that is bounded, decontamination with its report."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import opencc
import pytest

from artifacts.errors import UserError
from artifacts.files import read_json, read_jsonl, write_jsonl
from preprocess.cleaning.characters import Characters
from preprocess.cleaning.simplify import convert_many
from preprocess.deduplication import decontaminate, minhash
from preprocess.deduplication.deduplicate import deduplicate_by_similarity

REPOSITORY = Path(__file__).resolve().parents[2]
ALPHABET = [chr(0x4E00 + i) for i in range(3000)]


def passage(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(ALPHABET, k=length))


def changed(rng: random.Random, text: str, share: float) -> str:
    return "".join(rng.choice(ALPHABET) if rng.random() < share else c for c in text)


def jaccard(one: str, other: str) -> float:
    a, b = ({t[i : i + 5] for i in range(len(t) - 4)} for t in (one, other))
    return len(a & b) / len(a | b)


def planted(count: int) -> tuple[list[dict], dict[str, float]]:
    """Originals, and copies changed by 0 to 10 % of their characters, in any order after them; Jaccard by copy."""
    rng = random.Random(11)
    originals = [passage(rng, rng.randint(60, 900)) for _ in range(count)]
    copies = [changed(rng, text, rng.uniform(0, 0.1)) for text in originals]
    rows = [{"id": f"o{i}", "text": text, "metadata": {}} for i, text in enumerate(originals)]
    later = [{"id": f"c{i}", "text": text, "metadata": {}} for i, text in enumerate(copies)]
    rng.shuffle(later)
    return rows + later, {f"c{i}": jaccard(*pair) for i, pair in enumerate(zip(originals, copies))}


def dropped_of(source: Path, work: Path, memory: int) -> dict[str, str]:
    found = deduplicate_by_similarity(source, Counter(), work, memory)
    return {row["id"]: reason for row, reason in found if reason}


def test_planted_pairs_are_found_and_nothing_else(tmp_path, monkeypatch):
    rows, truth = planted(800)
    source = tmp_path / "rows.jsonl"
    write_jsonl(source, rows)
    dropped = set(dropped_of(source, tmp_path / "work", 1 << 28))
    similar = {name for name, value in truth.items() if value >= minhash.SIMILAR}
    assert len(similar) > 200 and len(truth) - len(similar) > 200
    assert len(dropped & similar) >= 0.95 * len(similar)
    assert len(dropped & similar) >= 0.95 * len(dropped)
    # the same verdicts when matching may hold next to nothing and keys lie in many segments
    monkeypatch.setattr(minhash, "SEGMENT", 100)
    assert set(dropped_of(source, tmp_path / "work", 30_000)) == dropped


def test_the_first_stays_and_reasons_are_told_apart(tmp_path):
    rng = random.Random(4)
    texts = [passage(rng, 300) for _ in range(3)]
    rows = [
        {"id": "a", "text": texts[0]},
        {"id": "b", "text": texts[1]},
        {"id": "again", "text": " ".join(texts[0])},
        {"id": "near", "text": texts[1][:150] + "某" + texts[1][151:]},
        {"id": "a", "text": texts[2]},
        {"id": "short", "text": "短。"},
        {"id": "short too", "text": "句。"},
    ]
    source = tmp_path / "rows.jsonl"
    write_jsonl(source, rows)
    found = list(deduplicate_by_similarity(source, Counter(), tmp_path / "work", 1 << 20))
    assert [reason for _, reason in found] == [None, None, "same text", "near duplicate", None, None, None]
    assert [row.get("repeats") for row, _ in found] == [None, None, 1, 2, None, None, None]
    assert [row["id"] for row, _ in found] == ["a", "b", "again", "near", "a@5", "short", "short too"]


def test_a_key_that_very_many_share_costs_no_more_memory(tmp_path):
    keys = np.full((minhash.KINDS, 50_000), 12345, dtype=np.uint64)
    (tmp_path / "signatures").mkdir()
    for shard in (0, 1):
        writer = minhash.KeyWriter(tmp_path / "signatures", shard)
        writer.add(keys)
        writer.flush()
    minhash.match(tmp_path, minhash.SAME_TEXT, 1 << 20)
    pairs = np.concatenate([np.load(path) for path in (tmp_path / "pairs").glob("00-*.npy")])
    assert len(pairs) == 99_999 and set(pairs[:, 0].tolist()) == {0}  # each with the first alone


def test_signatures_estimate_the_similarity():
    rng = random.Random(5)
    text = passage(rng, 3000)
    other = changed(rng, text, 0.04)
    signed = minhash.signatures(Characters.of([text, other, text]).without_space())
    assert (signed[0] == signed[2]).all()
    assert abs((signed[0] == signed[1]).mean() - jaccard(text, other)) < 0.15


def test_the_command_works_on_a_users_file_and_leaves_nothing(tmp_path):
    rows, truth = planted(60)
    write_jsonl(tmp_path / "F.jsonl", rows)
    command = [sys.executable, "-m", "preprocess.deduplication.deduplicate", "--input", str(tmp_path / "F.jsonl")]
    command += ["--output", str(tmp_path / "G.jsonl")]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    kept = [row["id"] for row in read_jsonl(tmp_path / "G.jsonl")]
    gone = [row["id"] for row in read_jsonl(tmp_path / "G.dropped.jsonl")]
    assert sorted(kept + gone) == sorted(row["id"] for row in rows) and gone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["F.jsonl", "G.dropped.jsonl", "G.jsonl"]


def test_what_an_evaluation_set_holds_is_removed_and_reported(tmp_path):
    rng = random.Random(6)
    question = convert_many([passage(rng, 40)], "t2s")[0]  # as the corpus is by then
    evaluation = tmp_path / "eval.jsonl"
    write_jsonl(evaluation, [{"question": "短"}, {"question": question, "choices": ["甲", passage(rng, 20)]}])
    spaced = "，".join(question[10 + i : 14 + i] for i in range(0, 16, 4))  # punctuation hides nothing
    rows = [
        {"id": "clean", "text": passage(rng, 500)},
        {"id": "leak", "text": passage(rng, 200) + spaced + passage(rng, 100)},
        {"id": "traditional", "text": passage(rng, 100) + opencc.OpenCC("s2t").convert(question)},
        {"id": "twelve", "text": passage(rng, 100) + question[5:17] + passage(rng, 100)},
    ]
    write_jsonl(tmp_path / "F.jsonl", rows)
    command = [sys.executable, "-m", "preprocess.deduplication.decontaminate", "--input", str(tmp_path / "F.jsonl")]
    command += ["--output", str(tmp_path / "G.jsonl"), "--evaluation", str(evaluation)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert [row["id"] for row in read_jsonl(tmp_path / "G.jsonl")] == ["clean", "twelve"]
    report = read_json(tmp_path / "G.contaminated.json")
    assert report["removed"] == [
        {"id": "leak", "evaluation": "eval.jsonl", "file": "eval.jsonl", "item": 2, "run": question[10:23]},
        {"id": "traditional", "evaluation": "eval.jsonl", "file": "eval.jsonl", "item": 2, "run": question[:13]},
    ]
    assert report["kept"] == 2 and report["short_strings"] == 2
    gated = subprocess.run([*command, "--gate"], cwd=REPOSITORY, capture_output=True, text=True)
    assert gated.returncode == 2 and "error: 2 documents of" in gated.stderr and "G.jsonl instead" in gated.stderr


def test_a_broken_evaluation_set_is_named(tmp_path):
    with pytest.raises(UserError, match="missing.jsonl does not exist"):
        decontaminate.index_of((str(tmp_path / "missing.jsonl"),))
    (tmp_path / "short.jsonl").write_text(json.dumps({"q": "短"}))
    with pytest.raises(UserError, match="has no text of 13 characters"):
        decontaminate.index_of((str(tmp_path / "short.jsonl"),))

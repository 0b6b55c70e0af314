"""Tokenizers: of both styles, read alike by every tool, learned from a bounded and evenly spread sample."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.errors import UserError
from artifacts.files import read_json, write_jsonl
from preprocess.dataset.encoding import load_tokenizer
from preprocess.tokenizer import probe as tokenizer_probe
from preprocess.tokenizer import sample as tokenizer_sample
from preprocess.tokenizer import train as tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
CHARACTERS = "春风明月夜江山白云天人间花鸟雨雪山水长空秋色远寒松竹酒愁归客楼台草木清高深照流"


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    return ["，".join("".join(rng.choices(CHARACTERS, k=5)) for _ in range(4)) + " Moon at 10" for _ in range(count)]


@pytest.fixture(scope="module", params=tokenizer.STYLES)
def style(request):
    return request.param


@pytest.fixture(scope="module")
def folder(style, tmp_path_factory):
    made = tmp_path_factory.mktemp(style)
    tokenizer.save(tokenizer.train(texts(2000), 600, style), made, style, model_max_length=256)
    return made


@pytest.mark.slow
def test_every_tool_reads_the_same_ids(folder, style):
    evidence = tokenizer_probe.gate(folder, tokenizer.MODEL_TYPES[style])
    assert any("megatron" in name for name in evidence["agreed"])
    assert any("llamafactory" in name for name in evidence["agreed"])
    assert len(evidence["agreed"]) + len(evidence["not_checked"]) == sum(map(len, tokenizer_probe.PLACES.values())) + 1
    assert read_json(folder / "probe.json") == evidence


@pytest.mark.slow
def test_the_gate_names_the_first_string_that_is_read_differently(folder, style, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_probe, "PLACES", {"train": ("transformers",)})  # one tool reads it otherwise: enough
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    described = json.loads((broken / "tokenizer.json").read_text())
    described["added_tokens"] = described["added_tokens"][:1]  # a special token that only the configuration knows
    for name in ("<|im_start|>", "<|im_end|>"):
        described["model"]["vocab"].pop(name, None)
    (broken / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"transformers in \.venv.* encodes '<\|im_start\|>user.*tokenizers as"):
        tokenizer_probe.gate(broken, tokenizer.MODEL_TYPES[style], ("train",))


def test_a_tokenizer_that_loses_text_is_refused(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    described = json.loads((broken / "tokenizer.json").read_text())
    described["decoder"] = None
    (broken / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="loses text"):
        tokenizer_probe.round_trips(broken)


def test_special_tokens_come_last_and_the_size_is_exact(folder):
    loaded = load_tokenizer(folder)
    assert loaded.get_vocab_size() == 600
    assert [loaded.token_to_id(token) for token in tokenizer.SPECIAL_TOKENS] == [597, 598, 599]


def test_nothing_is_unknown(folder):
    loaded = load_tokenizer(folder)
    for text in ("生僻字：龘🙂", "\x00\x01 \U0010ffff", "never seen before: ßñ"):
        assert loaded.decode(loaded.encode(text).ids, skip_special_tokens=False) == text


def test_llama2_vocabulary_begins_with_the_bytes(tmp_path):
    built = tokenizer.train(texts(500), 500, "llama2")
    assert [built.id_to_token(i) for i in range(256)] == [f"<0x{i:02X}>" for i in range(256)]
    assert built.encode("龘").tokens == ["<0xE9>", "<0xBE>", "<0x98>"]


def test_split_characters_gives_one_token_a_character(style):
    words = "".join(random.Random(1).choices("abcdefgh", k=3000))  # to fill the vocabulary with
    rows = [*texts(2000), *(words[i : i + 6] for i in range(0, 3000, 6))]
    built = tokenizer.train(rows, 400, style, split_characters=True)
    assert len(built.encode("春风明月夜，江山白云天").ids) == 11


def test_vocabularies_that_do_not_fit_are_said(style):
    with pytest.raises(UserError, match="lower it"):
        tokenizer.train(["春风"], 1000, style)
    with pytest.raises(UserError, match="is too small"):
        tokenizer.train(["春风"], 200, style)


def test_merges_are_learned_across_characters_inside_clauses_only():
    built = tokenizer.train(["明月夜，明月夜。" * 50 + "春" * 100] * 20, 272)
    merged = [built.decode([i]) for i in range(256, 269)]
    assert "明月夜" in merged
    assert not any("，" in text and len(text) > 1 for text in merged)
    assert max(map(len, merged)) <= 16


def test_the_sample_is_bounded_spread_and_the_same_each_time(tmp_path):
    rows = [f"{i:06d}" + "春" * 100 for i in range(20_000)]
    for name in ("large.jsonl", "large.jsonl.zst"):
        write_jsonl(tmp_path / name, ({"text": text} for text in rows))
        kept = tokenizer_sample.thinned(tmp_path / name, 300_000)
        assert 0.9 * 300_000 <= sum(len(text.encode()) for text in kept) <= 300_000
        assert kept == tokenizer_sample.thinned(tmp_path / name, 300_000)
        tenths = [sum(1 for text in kept if int(text[:6]) // 2000 == i) for i in range(10)]
        assert max(tenths) - min(tenths) <= 0.2 * max(tenths)
        assert tokenizer_sample.thinned(tmp_path / name, 10**9) == rows


def test_what_small_sources_leave_goes_to_large_ones(tmp_path):
    write_jsonl(tmp_path / "small.jsonl", ({"text": "秋" * 100} for _ in range(10)))
    write_jsonl(tmp_path / "large.jsonl", ({"text": "春" * 100} for _ in range(5000)))
    found = tokenizer_sample.sample([tmp_path / "large.jsonl", tmp_path / "small.jsonl"], 103_000)
    assert [path.name for path in found] == ["large.jsonl", "small.jsonl"]
    assert len(found[tmp_path / "small.jsonl"]) == 10
    assert 90_000 <= 300 * len(found[tmp_path / "large.jsonl"]) <= 100_000


def test_one_document_cannot_be_the_sample(tmp_path):
    write_jsonl(tmp_path / "f.jsonl", [{"text": "春" * 3_000_000}, {"text": "秋" * 10}])
    sizes = [len(text) for text in tokenizer_sample.thinned(tmp_path / "f.jsonl", 10**9)]
    assert sizes == [tokenizer_sample.LONGEST_DOCUMENT // 3, 10]


def test_memory_is_estimated_and_refused_before_training(tmp_path):
    write_jsonl(tmp_path / "f.jsonl", ({"text": text} for text in texts(10)))
    command = [
        sys.executable,
        "-m",
        "preprocess.tokenizer.train",
        "--input",
        str(tmp_path / "f.jsonl"),
        "--vocab-size",
        "600",
    ]
    command += ["--output", str(tmp_path / "out"), "--sample-megabytes", "500"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "--max-memory-gb (now 3.0)" in result.stderr and "--sample-megabytes 26 or less" in result.stderr
    for name in tokenizer.STYLES:
        for alone in (False, True):
            size = tokenizer_sample.largest_sample(3.0, name, alone)
            assert 2.99 < tokenizer_sample.estimate_gb(size, name, alone) <= 3.0
    with pytest.raises(UserError, match="is too small"):
        tokenizer_sample.largest_sample(0.2, "qwen2", False)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"text": \n', "line 1 is not JSON"), (b'{"text": "x"}\n{"t": 1}\n', "line 2 has no key 'text'"),
     (b'{"text": 1}\n', "line 1 has a 'text' that is not a string")],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path, content, message):
    (tmp_path / "f.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        tokenizer_sample.sample([tmp_path / "f.jsonl"], 1000)
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        tokenizer_sample.sample([tmp_path / "none.jsonl"], 1000)


def test_the_command_makes_a_whole_folder(tmp_path):
    write_jsonl(tmp_path / "f.jsonl.zst", ({"text": text} for text in texts(2000)))
    command = [sys.executable, "-m", "preprocess.tokenizer.train", "--input", str(tmp_path / "f.jsonl.zst")]
    command += ["--output", str(tmp_path / "out"), "--vocab-size", "600", "--environments", "none"]
    output = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    assert "not checked: megatron" in output and "at most" in output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja",
                     "probe.json", "report.json"}  # fmt: skip
    report = read_json(tmp_path / "out" / "report.json")
    assert report["sources"]["f.jsonl.zst"]["characters_per_token"] > 1

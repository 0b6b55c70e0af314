"""`myllm rehearse zh-0.5b`, whole: the pipeline that users come for, every command and every gate, in small."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.files import read_json, write_json
from artifacts.layout import REPOSITORY
from launch.pipeline import rehearsed as record
from launch.pipeline.definition import load_pipeline
from launch.pretraining.model_size import model_of
from launch.pretraining.recipe import get, layout_of, load_recipe, names, whole
from launch.rehearsal import model
from launch.rehearsal.shrink import QUESTIONS, SUBJECTS, at_most, put, value_of
from launch.rehearsal.table import hours_of_data

MYLLM = [sys.executable, "-m", "launch.cli"]


def myllm(cache: Path, *words: object, fails: bool = False) -> str:
    done = subprocess.run(
        [*MYLLM, *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "MYLLM_CACHE": str(cache)},
    )  # fmt: skip
    assert (done.returncode == 0) is not fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run and what was printed; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("rehearsal")
    run = folder / "zh-0.5b-rehearsal"
    return run, myllm(folder / "cache", "rehearse", "zh-0.5b", "--run-folder", run, "--price", 2)


@pytest.mark.slow
def test_every_stage_runs_and_every_gate_passes(rehearsal: tuple[Path, str]) -> None:
    run, said = rehearsal
    found = read_json(run / record.RECORD)
    stages = {row["stage"]: row for row in found["stages"]}
    assert [*stages] == [stage.name for stage in load_pipeline("zh-0.5b", run).stages]
    assert found["passed"] and {row["status"] for row in found["stages"]} == {"done"}
    gates = {name for row in found["stages"] for name in row["gates"]}
    assert gates == {
        "tokenizer", "decontamination", "datasets of blend", "datasets of blend-anneal", "losses", "converted logits",
        "data of sft_full", "data of dpo", "merged logits of dpo", "served tokens", "scores of base_ppl",
        "scores of chat_gen",
    }  # fmt: skip
    exams = [row for row in read_json(run / "eval" / "scores.json") if row["suite"] in ("ceval", "cmmlu")]
    assert len(exams) == 6 and {row["n"] for row in exams} == {SUBJECTS * QUESTIONS}
    assert "the rehearsal of zh-0.5b passed: 15 stages, 13 gates" in said
    assert "17,166 steps" in stages["pretrain"]["needs"] and re.search(r"cost \d+;", stages["pretrain"]["needs"])
    lacking = "baidu-baike, c4-zh, wikipedia-cn-filtered, zhwiki"
    assert stages["corpora"]["needs"] == f"hours not known before {lacking} is downloaded"
    assert any("deepspeed" in text for text in found["elsewhere"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Rehearsal" in page and "17,166 steps" in page and "Anneal loss" in page and "corpus" not in stages
    assert not list((run / "checkpoints-anneal").glob("iter_*22")), "what the phase began with is thinned"
    assert read_json(run / "checkpoints-anneal/branch.json")["iteration"] == 22


@pytest.mark.slow
def test_it_is_done_before_the_second_time(rehearsal: tuple[Path, str]) -> None:
    run, _ = rehearsal
    again = myllm(run.parent / "cache", "rehearse", "zh-0.5b", "--run-folder", run, "--price", 2)
    assert again.count("done before, skipped") == 16 and "15 stages, 13 gates" in again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "told"),
    [
        # a chat template that never ends an answer: the model would never stop
        ("python -m tests.pipeline.break_template --output {run}/base", "the chat template does not end an answer"),
        # the tokenizer of another model: more entries than the model has rows
        ("python -m tests.pipeline.break_template --rows 900 --output {run}/base", "but the model has 900 rows"),
    ],
    ids=["a template without stop", "a tokenizer that does not fit"],
)
def test_what_only_running_shows(rehearsal: tuple[Path, str], tmp_path: Path, command: str, told: str) -> None:
    run, _ = rehearsal
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"name: mine\ndescription: a mistake\nstages:\n  broken:\n    commands:\n"
        f"      - {command} --model {run}/models/base\n"
        f"  sft:\n    needs: [broken]\n    commands:\n      - myllm posttrain sft_full --model {{run}}/base --data "
        f"{run}/instructions --output {{run}}/sft --set dataset=dpo_zh_train --set eval_dataset=dpo_zh_valid\n".replace(
            "dpo_zh", "alpaca_gpt4_data_zh"
        )
    )
    said = myllm(tmp_path / "cache", "rehearse", file, "--run-folder", tmp_path / "mine", fails=True)
    assert told in said, said


@pytest.mark.slow
def test_a_wrong_column_is_found(tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text('{"content": "春天来了，江边的柳树发了芽，孩子们在堤上放风筝。"}\n' * 5, encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\ndescription: a mistake\nstages:\n  corpora:\n    commands:\n      - myllm corpora --source jsonl "
        f"--input {source} --text-key text --output-folder {{run}}/corpus\n"
    )
    said = myllm(tmp_path / "cache", "rehearse", file, "--run-folder", tmp_path / "mine", fails=True)
    assert "no key 'text'" in said and "stage corpora failed" in said


def test_a_submission_tells_what_was_not_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "rehearsal_folder", lambda name: tmp_path / name)
    file = REPOSITORY / "launch/pipelines/zh-0.5b.yaml"
    assert "has not been rehearsed here: `myllm rehearse zh-0.5b`" in record.not_rehearsed("zh-0.5b", file, {})
    written = tmp_path / "zh-0.5b" / record.RECORD
    found = {"passed": True, "of": record.identity(file, {"vocab": "1"})}
    write_json(written, found)
    assert record.not_rehearsed("zh-0.5b", file, {"vocab": "1"}) == ""
    assert "its values changed" in record.not_rehearsed("zh-0.5b", file, {"vocab": "2"})
    monkeypatch.setattr(record, "revision", lambda: "another")
    assert "the code changed" in record.not_rehearsed("zh-0.5b", file, {"vocab": "1"})
    write_json(written, {**found, "passed": False})
    assert "did not pass" in record.not_rehearsed("zh-0.5b", file, {"vocab": "1"})


def test_words_are_replaced_in_either_form() -> None:
    words = ["myllm", "x", "--vocab-size=64000", "--tasks", "64", "--a", "b", "c"]
    assert put(words, "--tasks", 2)[-2:] == ["--tasks", "2"] and put(words, "--tasks", 2).count("--tasks") == 1
    assert at_most(words, "--vocab-size", 1024)[-2:] == ["--vocab-size", "1024"]
    assert at_most(words, "--limit", 3) == words
    assert [value_of(words, name) for name in ("--vocab-size", "--tasks", "--z")] == ["64000", "64", None]


@pytest.mark.parametrize("name", names("models"))
def test_a_small_model_keeps_its_flags(name: str) -> None:
    training = "demo" if "tiny" in name else "zh-100b"
    for sets in ([], ["kv-channels=128"]):
        large = load_recipe(name, training, "cpu", sets)
        keys = model.rehearsal_keys(name, training, "cpu", sets, whole(large, "train-iters"), False, None)
        small = load_recipe(name, training, "cpu", [*sets, *keys])
        layout_of(small)  # heads, layers and batch fit the hardware
        one, other = model_of(large), model_of(small)
        for kept in ("tied", "qkv_bias", "qk_norm"):
            assert getattr(one, kept) == getattr(other, kept), kept
        assert (one.groups < one.heads) == (other.groups < other.heads)
        assert (other.head_dim * other.heads != other.hidden) == (get(large, "kv-channels") is not None)
        assert whole(small, "max-position-embeddings") == whole(large, "max-position-embeddings")
        assert whole(small, "train-iters") <= 900 and get(small, "lr") == get(large, "lr")


def test_phases_shrink_by_one_factor() -> None:
    """The decay phase is still longer than the one before it, whatever their lengths."""
    for stable, anneal in (("zh-10b-stable", "zh-10b-anneal"), ("zh-100b-stable", "zh-100b-anneal")):
        last = whole(load_recipe("qwen2-0.5b", anneal, "cpu"), "train-iters")
        steps = [model.fewer_steps(load_recipe("qwen2-0.5b", name, "cpu"), last, model.STEPS)["train-iters"]
                 for name in (stable, anneal)]  # fmt: skip
        assert 0 < steps[0] < steps[1] == model.STEPS


def test_hours_follow_from_bytes_and_processes() -> None:
    assert hours_of_data(36, 4, 10_000_000, 10_000_000_000) == pytest.approx(5)


def test_a_mistake_is_told_before_anything_runs(tmp_path: Path) -> None:
    words = ("rehearse", "zh-0.5b", "--run-folder", tmp_path / "r", "--set", "sft=--set cutof_len=1")
    said = myllm(tmp_path / "cache", *words, fails=True)
    assert "sft: " in said and "did you mean 'cutoff_len'" in said and not (tmp_path / "r").exists()

"""The arithmetic example: no sum that is asked was read, and its pipeline plugs into the general stages."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.files import read_json, read_jsonl
from artifacts.layout import REPOSITORY
from eval_configs.questions_data import read_questions
from examples.arithmetic import make
from launch.posttraining import rewards


def test_a_sum_and_its_mirror_image_are_in_one_part():
    parts = make.split_sums(20, seed=1)
    sums = {part: {frozenset(pair) for pair in pairs} for part, pairs in parts.items()}
    assert not sums["train"] & sums["test"] and not sums["train"] & sums["valid"] and not sums["test"] & sums["valid"]
    assert sorted(pair for pairs in parts.values() for pair in pairs) == [(a, b) for a in range(21) for b in range(21)]


def test_choices_are_four_numbers_of_equal_length_and_one_is_right():
    for row in make.choices(make.split_sums(50, seed=1)["test"], random.Random(1)):
        a, b = map(int, str(row["id"]).split("+"))
        assert row["choices"][row["answer"]] == f"{a + b}。" and len(set(row["choices"])) == 4
        assert len({len(choice) for choice in row["choices"]}) == 1


def test_too_few_sums_are_refused(tmp_path: Path):
    command = [sys.executable, "-m", "examples.arithmetic.make", "--output", str(tmp_path), "--largest", "5"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and "--largest must be at least 12" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_its_data_passes_the_general_stages(tmp_path: Path):
    """From made-up sums to a blended dataset; the tasks are what post-training and `myllm eval` read."""
    command = [sys.executable, "-m", "launch.cli", "run", "arithmetic-tiny", "--to", "binning"]
    done = subprocess.run(
        [*command, "--run-folder", str(tmp_path / "run"), "--set", "documents=2000"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tasks = tmp_path / "run" / "tasks"
    asked = {row["id"] for row in read_questions(tasks / "sums.jsonl")}
    read = "".join(row["text"] for row in read_jsonl(tmp_path / "run" / "corpus" / "train.jsonl.zst"))
    pairs = re.findall(r"(\d+)加(\d+)等于", read)
    assert pairs and not asked & {f"{a}+{b}" for one, other in pairs for a, b in ((one, other), (other, one))}
    rows = read_json(tasks / "rl_train.json")
    judged = rewards.exact_answer(
        prompts=[], completions=[row["output"] for row in rows], answer=[r["output"] for r in rows]
    )
    assert set(judged) == {1.0}
    assert (tmp_path / "run" / "dataset" / "blend.json").exists()

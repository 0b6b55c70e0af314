"""What `environments/create.sh` says it will make, and that every lock file can be asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import ahead, layout
from artifacts.layout import ENVIRONMENTS, REPOSITORY

LOCKS = sorted(path.stem for path in (REPOSITORY / "environments").glob("*.lock"))
FOR_GPUS = {"train": "gpu", **{name: f"{name}-gpu" for name in ("eval", "serve", "lmdeploy", "lmeval")}}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of `environments/` in an empty repository: nothing is made there yet."""
    shutil.copytree(REPOSITORY / "environments", tmp_path / "environments")
    return tmp_path


def create(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    outer = {key: value for key, value in os.environ.items() if key not in ("GPU", "PYTHON")}
    command = [str(folder / "environments" / "create.sh"), *words]
    return subprocess.run(command, env={**outer, **variables}, capture_output=True, text=True)


def planned(folder: Path, *names: str, **variables: str) -> list[list[str]]:
    """The plan's lines in words, e.g. [".venv", "train.lock", "2.1", "GB", "30", "s"]; the last line is the sum."""
    done = create(folder, "--dry-run", *names, **variables)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def stamp(folder: Path, environment: str, lock: str) -> None:
    """Mark an environment as made, with the stamp that `create.sh` would write."""
    shown = create(folder, "--stamp", lock)
    (folder / environment).mkdir(exist_ok=True)
    (folder / environment / ".stamp").write_text(f"{shown.stdout.strip()} 3.11\n")


def test_the_plan_names_every_environment_with_size_and_time(copy: Path) -> None:
    *rows, total = planned(copy, "train", "eval", "serve", "ppo", GPU="no")
    assert [row[:2] for row in rows] == [
        [".venv", "train.lock"],
        [".venv-eval", "eval.lock"],
        [".venv-serve", "serve.lock"],
        [".venv-ppo", "ppo.lock"],
    ]
    sizes = [float(row[2]) for row in rows]
    assert sizes[0] > 1 and float(total[2]) == pytest.approx(sum(sizes), abs=0.2)
    assert not list(copy.glob(".venv*"))


def test_what_is_made_is_said_and_not_counted(copy: Path) -> None:
    stamp(copy, ".venv-eval", "eval")
    train, evaluation, total = planned(copy, "train", "eval", GPU="no")
    assert " ".join(evaluation) == ".venv-eval eval.lock made already"
    assert total[2] == train[2]
    (copy / "environments" / "eval.lock").write_text("# another\n")
    assert "GB" in planned(copy, "eval", GPU="no")[0]


def test_with_a_gpu_every_environment_is_made_from_its_lock_for_gpus(copy: Path) -> None:
    rows = planned(copy, *FOR_GPUS, "ppo", "clients", GPU="yes")[:-1]
    assert [row[1] for row in rows] == [f"{lock}.lock" for lock in (*FOR_GPUS.values(), "ppo", "clients")]
    assert [row[0] for row in rows[:-2]] == [ENVIRONMENTS[name] for name in FOR_GPUS]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_folder_made_for_gpus_stays_one_until_a_cpu_is_asked_for(copy: Path) -> None:
    assert planned(copy, "train")[0][1] == "train.lock"
    stamp(copy, ".venv", "gpu-te")
    assert " ".join(planned(copy, "train")[0]) == ".venv gpu-te.lock made already"
    assert (
        planned(copy, "gpu")[0][:2] == [".venv", "gpu.lock"] and planned(copy, "train", GPU="no")[0][1] == "train.lock"
    )


def test_another_python_makes_an_environment_anew(copy: Path) -> None:
    stamp(copy, ".venv-eval", "eval")
    assert "already" in planned(copy, "eval", GPU="no")[0]
    version = ".".join(map(str, sys.version_info[:2]))
    again = planned(copy, "eval", GPU="no", PYTHON=sys.executable)[0]
    assert ("already" in again) == (version == "3.11")


@pytest.mark.parametrize(
    ("words", "variables", "error"),
    [
        (["evla"], {}, "there is no environments/evla.lock; there are: clients.lock"),
        (["eval"], {"GPU": "1"}, "GPU is 1: say GPU=yes or GPU=no"),
        (["eval"], {"PYTHON": "python9"}, "PYTHON is python9, which is not a Python with venv"),
        ([], {}, "which one?"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_made(
    copy: Path, words: list[str], variables: dict[str, str], error: str
) -> None:
    done = create(copy, *words, **variables)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {error}")
    assert not list(copy.glob(".venv*"))


def test_without_a_fitting_python_the_ways_to_get_one_are_told(copy: Path, tmp_path: Path) -> None:
    """Stand-ins that only print an error, as pyenv's do, are not a Python."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for version in ("3.11", "3.12", "3.13"):
        (tools / f"python{version}").write_text("#!/bin/sh\nexit 127\n")
        (tools / f"python{version}").chmod(0o755)
    done = create(copy, "clients", PATH=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert re.search(r"no Python of 3\.11 or .*apt-get install python3-venv.*PYTHON=/.*PYTHON=uv", done.stderr)


def test_every_lock_has_its_size_and_its_row_in_the_readme() -> None:
    text = (REPOSITORY / "environments" / "sizes.txt").read_text()
    sizes = {words[0]: words[1:] for words in map(str.split, text.splitlines()) if words[0] != "#"}
    assert sorted(sizes) == LOCKS
    assert all(len(words) == 2 and all(word.isdecimal() for word in words) for words in sizes.values())
    readme = (REPOSITORY / "environments" / "README.md").read_text(encoding="utf-8")
    assert [name for name in LOCKS if f"| `{name}.lock` |" not in readme] == []


def test_locks_for_gpus_hold_what_shipped_recipes_name() -> None:
    """LLaMA-Factory 0.9.4 refuses a newer DeepSpeed when a training starts, so its own range decides."""
    for lock in ("gpu", "gpu-te"):
        text = (REPOSITORY / "environments" / f"{lock}.lock").read_text()
        found = re.search(r"^deepspeed==0\.(\d+)\.(\d+)$", text, re.MULTILINE)
        assert found and (10, 0) <= tuple(map(int, found.groups())) <= (16, 9), lock
        assert re.search(r"^bitsandbytes==", text, re.MULTILINE), lock


def test_locks_for_gpus_have_cudas_torch() -> None:
    for lock in (name for name in LOCKS if "gpu" in name):
        text = (REPOSITORY / "environments" / f"{lock}.lock").read_text()
        assert re.search(r"^torch==[\d.]+$", text, re.MULTILINE) and "nvidia-cudnn" in text, lock


def test_a_stage_that_scores_on_a_gpu_tells_of_an_environment_for_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "REPOSITORY", tmp_path)
    monkeypatch.setattr(layout, "REPOSITORY", tmp_path)
    (tmp_path / ".venv-eval" / "bin").mkdir(parents=True)
    (tmp_path / ".venv-eval" / "bin" / "python").touch()
    said = {}
    for lock in ("eval", "eval-gpu"):
        (tmp_path / ".venv-eval" / ".stamp").write_text(f"{lock} 0123 3.12\n")
        found = ahead.Ahead(stage="score")
        found.environment("eval", gpu=True)
        said[lock] = found.elsewhere
    mend = ".venv-eval cannot use a GPU: run `make env-eval GPU=yes`"
    assert said == {"eval": [("score", mend)], "eval-gpu": []}

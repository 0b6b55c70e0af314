"""Every pipeline that ships: it loads, and `myllm check` finds nothing wrong with it that is no matter of a machine."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from artifacts.layout import REPOSITORY, Run
from launch.pipeline.check import look
from launch.pipeline.definition import PIPELINES, load_pipeline
from launch.rehearsal.shrink import Place, longest_training, rehearsed

NAMES = sorted(path.name.removesuffix(".yaml") for path in PIPELINES.glob("*.yaml"))


@cache
def help_of(*program: str) -> str:
    command = [sys.executable, "-m", *program, "--help"]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_with_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYLLM_CACHE", str(tmp_path / "cache"))
    pipeline = load_pipeline(name, tmp_path / "run")
    assert pipeline.name == name
    found = look(pipeline, pipeline.stages, Run(tmp_path / "run"), quick=True).problems
    origin = pipeline.values.get("origin", "none")  # of a second pipeline: what the first one leaves, and its downloads
    assert [text for _, text in found if origin not in text and str(tmp_path / "cache") not in text] == []
    assert bool(found) == ("origin" in pipeline.values)


@pytest.mark.parametrize("name", NAMES)
def test_its_rehearsal_is_the_same_in_small(name: str, tmp_path: Path) -> None:
    """Every command is there, and none but those that `shrink` names is changed."""
    pipeline = load_pipeline(name, tmp_path / "run")
    place = Place(tmp_path / "run", tmp_path / "cache", longest=longest_training(pipeline))
    small = rehearsed(pipeline, place)
    assert [stage.name for stage in small.stages] == [stage.name for stage in pipeline.stages]
    for stage, other in zip(pipeline.stages, small.stages):
        programs = [command[:2] for command in stage.commands if command[:2] != ["myllm", "download"]]
        kept = [c[:2] for c in other.commands if c[0] in ("myllm", "python") and c[2] != "preprocess.sources.rehearsal"]
        assert programs == kept, stage.name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_module_knows_its_options(name: str, tmp_path: Path) -> None:
    for stage in load_pipeline(name, tmp_path / "run").stages:
        for command in stage.commands:
            if command[0] == "python":
                known = help_of(command[2]).replace("\n", " ")
                for flag in (word.split("=")[0] for word in command[3:] if word.startswith("--")):
                    assert any(f"{flag}{end}" in known for end in " ,]"), f"{name}, {stage.name}: {flag}"

"""A GPU is never left unused in silence: the line that `myllm run` prints, with a made-up GPU and without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import layout
from artifacts.layout import REPOSITORY
from launch.pipeline import gpu_notice
from launch.pipeline.definition import load_pipeline
from launch.pipeline.gpu_notice import VisibleGpu, notice

H100 = VisibleGpu("NVIDIA H100 80GB HBM3", 81_559)


def said(
    pipeline: str, *replaced: str, last: str | None = None, gpu: VisibleGpu | None, environment: str
) -> str | None:
    loaded = load_pipeline(pipeline, Path("runs") / pipeline, list(replaced))
    return notice(loaded, loaded.between(None, last), lambda: gpu, lambda: environment)


def test_a_gpu_that_is_not_used_is_told_with_the_command() -> None:
    assert said("poetry-tiny", gpu=H100, environment="gpu") == (
        "This machine has a GPU (NVIDIA H100 80GB HBM3); this run trains on the CPU. To use the GPU (not tried yet): "
        "myllm run poetry-tiny --set hardware=gpu-1-80gb (hardware files: gpu-1-24gb, gpu-1-80gb, gpu-1-80gb-te)"
    )
    line = said("poetry-tiny-posttrain", gpu=VisibleGpu("NVIDIA GeForce RTX 4090", 24_564), environment="train") or ""
    assert "make env-gpu && myllm run poetry-tiny-posttrain --set hardware=gpu-1-24gb" in line and "\n" not in line


def test_the_commands_that_the_line_names_load() -> None:
    for pipeline in ("poetry-tiny", "poetry-tiny-posttrain"):
        for name in ("gpu-1-24gb", "gpu-1-80gb", "gpu-1-80gb-te"):
            assert said(pipeline, f"hardware={name}", gpu=H100, environment="gpu") is None
            commands = [c for s in load_pipeline(pipeline, Path("r"), [f"hardware={name}"]).stages for c in s.commands]
            trainings = [c for c in commands if c[1] in gpu_notice.TRAINERS and c[2] != "merge"]
            assert trainings and all(c[c.index("--hardware") + 1] == name for c in trainings)


@pytest.mark.parametrize(
    ("pipeline", "last", "gpu"),
    [("poetry-tiny", None, None), ("poetry-tiny", "binning", H100), ("zh-0.5b", None, H100)],
    ids=["no GPU", "no training", "hardware is a GPU's"],
)
def test_nothing_is_said_where_there_is_nothing_to_say(pipeline: str, last: str | None, gpu: VisibleGpu | None) -> None:
    assert said(pipeline, last=last, gpu=gpu, environment="gpu") is None


def test_the_environment_is_the_stamps_first_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "REPOSITORY", tmp_path)
    assert layout.lock_of("train") == ""
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".stamp").write_text("gpu-te 0123  -\n")
    assert layout.lock_of("train") == "gpu-te"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up nvidia-smi, the only one on the path."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\necho 'NVIDIA H100 80GB HBM3, 81559'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tool


def test_the_driver_is_asked(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_notice.visible_gpu() == H100
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_notice.visible_gpu() is None


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
@pytest.mark.parametrize("text", [None, "#!/bin/sh\nexit 9\n", "#!/bin/sh\necho no devices were found\n"])
def test_without_a_gpu_there_is_none(driver: Path, text: str | None) -> None:
    if text is None:
        driver.unlink()
    else:
        driver.write_text(text)
    assert gpu_notice.visible_gpu() is None


def test_the_line_comes_first(driver: Path, tmp_path: Path) -> None:
    """The command itself, stopped by a download that cannot be: what it prints before the first stage."""
    command = [sys.executable, "-m", "launch.cli", "run", "poetry-tiny", "--run-folder", str(tmp_path / "run")]
    (tmp_path / "run").write_text("no folder")
    result = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert result.stdout.splitlines()[0].startswith("This machine has a GPU (NVIDIA H100 80GB HBM3)"), result
    dry = subprocess.run([*command, "--dry-run"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert dry.stdout.startswith("# download")

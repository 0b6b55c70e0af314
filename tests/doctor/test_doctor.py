"""`myllm doctor`: every kind of fault is planted once; what it prints names nobody."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from artifacts import layout
from artifacts.layout import REPOSITORY
from launch import doctor
from launch.doctor import FAULT, OK, TOLD, WARN, Finding


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in found}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up repository with one environment, as create.sh leaves it."""
    for module in (doctor, layout):
        monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    folder = tmp_path / "environments" / "stubs" / "x"
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text("x")
    (tmp_path / "environments" / "create.sh").write_text("# creates")
    lock = "# Made\nTorch_audio==2.13.0\nnumpy==2.1.0 ; python_version>='3'\n"
    (tmp_path / "environments" / "train.lock").write_text(lock)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for name in ("torch_audio-2.13.0+cpu", "numpy-2.1.0"):
        (tmp_path / f".venv/lib/python3.11/site-packages/{name}.dist-info").mkdir(parents=True)
    (tmp_path / ".venv" / ".stamp").write_text(f"{doctor.stamp('train')}  -\n")
    return tmp_path


def test_the_stamp_is_that_of_create_sh() -> None:
    script = "source <(grep '^stamp()' environments/create.sh); stamp train"
    said = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"{doctor.stamp('train')}  -"


def test_environments(repository: Path) -> None:
    found = by_name(list(doctor.environments()))
    assert found[".venv"].state == OK and found[".venv"].found.startswith("train.lock")
    assert (found[".venv-eval"].state, found[".venv-eval"].mend) == (WARN, "make env-eval")
    assert found[".venv-lmeval"].state == TOLD and found[".venv-ppo"].mend == "make env-ppo"


@pytest.mark.parametrize(
    ("fault", "state", "told"),
    [
        ("another version", WARN, "numpy 1.0.0 instead of 2.1.0"),
        ("a package is gone", WARN, "numpy missing instead of 2.1.0"),
        ("the lock changed", WARN, "an older train.lock"),
        ("no python", FAULT, "does not start"),
        ("interrupted", WARN, "not made by this project, or interrupted"),
        ("none", FAULT, "not made"),
    ],
)
def test_an_environment_that_is_not_right(repository: Path, fault: str, state: str, told: str) -> None:
    packages = repository / ".venv/lib/python3.11/site-packages"
    if fault == "another version":
        (packages / "numpy-2.1.0.dist-info").rename(packages / "numpy-1.0.0.dist-info")
    elif fault == "a package is gone":
        (packages / "numpy-2.1.0.dist-info").rmdir()
    elif fault == "the lock changed":
        (repository / "environments/create.sh").write_text("# creates otherwise")
    elif fault == "no python":
        (repository / ".venv/bin/python").unlink()
        (repository / ".venv/bin/python").write_text("#!/bin/false\n")
    elif fault == "interrupted":
        (repository / ".venv/.stamp").unlink()
    else:
        (repository / ".venv/bin/python").unlink()
    found = by_name(list(doctor.environments()))[".venv"]
    assert found.state == state and told in found.found and "make env-train" in found.mend


def tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_programs_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = by_name([*doctor.programs(), *doctor.interpreters()])
    assert found["g++"].state == found["Python"].state == FAULT and found["npm"].state == WARN
    assert found["g++"].mend == "apt-get install g++"


def test_a_gpu_its_driver_and_the_environment(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "environments/gpu.lock").write_text("nvidia-cuda-runtime==13.0.96\ntorch==2.13.0\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    says = 'case $1 in --query*) echo "NVIDIA H100, 81559 MiB, 550.1" ;; *) echo "CUDA Version: 12.4" ;; esac'
    tool(tools, "nvidia-smi", says)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    found = by_name(list(doctor.gpus()))
    assert "H100" in found["NVIDIA"].found and found[".venv"].mend == "make env-gpu"
    assert found["driver"].state == FAULT and "CUDA 12.4; gpu.lock is for CUDA 13" in found["driver"].found


def test_a_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(2**40, 0, 20e9))
    assert {one.state for one in doctor.disks()} == {WARN}
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(2**26, 0, 1e9))
    assert {one.state for one in doctor.disks()} == {FAULT}
    assert by_name(list(doctor.memory()))["/dev/shm"].mend.startswith("docker run --shm-size")


def test_the_network_by_the_users_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://name:word@127.0.0.1:9/simple")
    monkeypatch.setenv("https_proxy", "http://name:word@proxy.example:3128")
    monkeypatch.setattr(doctor, "called", lambda *_: "http://127.0.0.1:9")
    found = by_name(list(doctor.network()))
    assert found["models and corpora"].state == WARN and "HF_ENDPOINT" in found["models and corpora"].mend
    assert found["https_proxy"].found == "proxy.example"
    assert "word" not in doctor.table(list(found.values()))


def test_slurm_and_a_check_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, "sinfo", 'case $1 in --version) echo slurm 24.05 ;; *) echo "batch* up 2 nodes gpu:8" ;; esac')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def strange():
        raise ZeroDivisionError("a strange machine")
        yield

    found = doctor.examine((strange, doctor.slurm))
    assert found[0].state == WARN and "a strange machine" in found[0].found
    assert [one.found for one in found[1:]] == ["slurm 24.05", "batch* up 2 nodes gpu:8"]


def test_the_report_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "node", lambda: "secret-host")
    text = doctor.without_names(f"{Path.home()}/runs on secret-host")
    assert text == "~/runs on HOST"


@pytest.mark.parametrize("options", [["--offline"], ["--offline", "--report"], ["--offline", "--json"]])
def test_the_real_command_needs_the_standard_library_alone(options: list[str]) -> None:
    """-S: no site-packages; -I would hide the repository too."""
    command = [sys.executable, "-S", "-m", "launch.doctor", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode in (0, 2), done.stderr
    if "--json" in options:
        assert {"group", "name", "state", "found", "mend"} == set(json.loads(done.stdout)[0])
    else:
        assert ".venv:" in done.stdout and "warnings" in done.stdout
        assert done.stdout.startswith("```") == ("--report" in options)

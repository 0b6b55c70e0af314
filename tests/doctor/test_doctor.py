"""`myllm doctor`: every kind of fault is planted once; a report names nobody; the standard library is enough."""

import json
import os
import re
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from artifacts import layout
from launch import doctor
from launch.doctor_checks import (
    CHECKS,
    accelerators,
    base,
    environments,
    machine,
    network,
    programs,
    slurm,
)
from launch.doctor_checks.base import FAULT, INFO, OK, WARN, Check, Finding

REPOSITORY = layout.REPOSITORY


def by_name(found: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def program(folder: Path, name: str, script: str) -> None:
    """A made-up program on the PATH."""
    write(folder / name, f"#!/bin/sh\n{script}\n").chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up / with its /proc, /sys and /dev."""
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setattr(base, "ROOT", folder)
    return folder


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up repository with one environment, as create.sh leaves it."""
    folder = tmp_path / "repository"
    monkeypatch.setattr(layout, "REPOSITORY", folder)
    monkeypatch.setattr(doctor, "REPOSITORY", folder)
    write(folder / "environments/stubs/x/pyproject.toml", "x")
    write(folder / "environments/create.sh", "# creates")
    write(folder / "environments/train.lock", "# Made\nTorch_vision==2.13.0\nnumpy==2.1.0 ; python_version>='3'\n")
    packages = folder / ".venv/lib/python3.11/site-packages"
    for name in ("torch_vision-2.13.0+cpu", "numpy-2.1.0", "megatron_core-0.19.2", "myllm-0.1.0"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    (folder / ".venv/bin").mkdir()
    (folder / ".venv/bin/python").symlink_to(sys.executable)
    write(folder / ".venv/bin/myllm", f"#!{folder}/.venv/bin/python\n")
    write(folder / ".venv/.stamp", f"train {environments.stamp('train')}  -\n")
    return folder


# ---- environments


def test_the_stamp_is_that_of_create_sh() -> None:
    for lock in ("train", "gpu", "ppo"):
        script = f"source <(grep '^stamp()' environments/create.sh); stamp {lock}"
        said = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        assert environments.up_to_date(said)
        assert not environments.up_to_date(said.replace(said.split()[1][:4], "0123"))
    assert not environments.up_to_date("") and not environments.up_to_date("train")


def test_the_environment_that_create_sh_leaves(repository: Path) -> None:
    found = by_name(environments.environments())
    assert found[".venv"].state == OK and "train.lock" in found[".venv"].found, found[".venv"]
    assert "megatron-core 0.19.2" in found[".venv"].found
    assert (found[".venv-eval"].state, found[".venv-eval"].mend) == (WARN, "make env-eval")
    assert (found[".venv-ppo"].state, found[".venv-ppo"].mend) == (WARN, "make env-ppo")
    assert {found[f".venv-{name}"].state for name in ("clients", "lmdeploy", "lmeval")} == {INFO}
    assert found["uv"].state == INFO


def rename(before: str, after: str) -> Callable[[Path], object]:
    return lambda folder: (folder / before).rename(folder / after)


PACKAGES = ".venv/lib/python3.11/site-packages/"
ENVIRONMENT_FAULTS: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "another version": (
        rename(f"{PACKAGES}numpy-2.1.0.dist-info", f"{PACKAGES}numpy-1.0.0.dist-info"),
        WARN,
        "numpy is 1.0.0, not 2.1.0",
        "rm -rf .venv && make env-train",
    ),
    "a package of the lock is missing": (
        lambda folder: (folder / f"{PACKAGES}numpy-2.1.0.dist-info").rmdir(),
        WARN,
        "numpy 2.1.0 is missing",
        "rm -rf .venv && make env-train",
    ),
    "megatron-core is missing": (
        lambda folder: (folder / f"{PACKAGES}megatron_core-0.19.2.dist-info").rmdir(),
        WARN,
        "megatron-core is missing",
        "rm -rf .venv && make env-train",
    ),
    "create.sh changed": (
        lambda folder: write(folder / "environments/create.sh", "# creates otherwise"),
        WARN,
        "older than train.lock",
        "make env-train",
    ),
    "a stand-in changed": (
        lambda folder: write(folder / "environments/stubs/x/pyproject.toml", "y"),
        WARN,
        "older than train.lock",
        "make env-train",
    ),
    # the stamp is right, so `make env-train` alone would do nothing
    "its Python was removed": (
        lambda folder: [(folder / ".venv/bin/python").unlink(), (folder / ".venv/bin/python").symlink_to("/gone")],
        FAULT,
        "does not start",
        "rm -rf .venv && make env-train",
    ),
    "moved": (
        lambda folder: write(folder / ".venv/bin/myllm", "#!/elsewhere/.venv/bin/python\n"),
        FAULT,
        "moved or copied",
        "rm -rf .venv && make env-train",
    ),
    "interrupted": (
        lambda folder: (folder / ".venv/.stamp").unlink(),
        FAULT,
        "incomplete",
        "rm -rf .venv && make env-train",
    ),
    "not made": (rename(".venv", "other"), FAULT, "not made (for every pipeline)", "make env-train"),
}


@pytest.mark.parametrize("name", ENVIRONMENT_FAULTS)
def test_an_environment_that_is_not_right(repository: Path, name: str) -> None:
    plant, state, told, mend = ENVIRONMENT_FAULTS[name]
    plant(repository)
    found = by_name(environments.environments())[".venv"]
    assert (found.state, found.mend) == (state, mend) and told in found.found, found


def test_an_environment_for_gpus_is_mended_by_its_own_target(repository: Path) -> None:
    write(repository / "environments/gpu.lock", "numpy==2.1.0\n")
    write(repository / ".venv/.stamp", f"gpu {'0' * 64}  -\n")
    found = by_name(environments.environments())[".venv"]
    assert "older than gpu.lock" in found.found and found.mend == "make env-gpu"


def test_many_differences_are_cut(repository: Path) -> None:
    write(repository / "environments/train.lock", "".join(f"package-{number}==1\n" for number in range(9)))
    assert by_name(environments.environments())[".venv"].found.endswith("package-2 1 is missing, and 6 more")


def test_tools_that_are_not_whole(repository: Path) -> None:
    (repository / ".tools").mkdir()
    found = by_name(environments.environments())["uv"]
    assert found.state == WARN and found.mend.startswith("rm -rf .tools")


# ---- programs


def test_programs_that_are_missing(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MYLLM_POETRY_TARBALL", raising=False)
    found = by_name([*programs.programs(), *programs.interpreters()])
    assert found["g++"].state == found["Python"].state == FAULT and found["g++"].mend == "apt-get install g++"
    assert {found[name].state for name in ("make", "git", "npm")} == {WARN}
    assert "MYLLM_POETRY_TARBALL" in found["npm"].mend and "python3.11" in found["Python"].mend
    program(tools, "npm", "echo no home >&2; exit 1")
    assert by_name(programs.programs())["npm"].mend == "run `npm --version` and mend what it says"
    monkeypatch.setenv("MYLLM_POETRY_TARBALL", "poems.tgz")
    assert by_name(programs.programs())["npm"].state == INFO


@pytest.mark.parametrize(
    ("scripts", "state", "told"),
    [
        ({"python3.11": "echo 3.11.7 True"}, OK, "3.11.7"),
        ({"python3.12": "echo 3.12.1 True"}, WARN, "3.12.1; the lock files for a CPU are made for 3.11"),
        ({"python3.11": "echo 3.11.7 False"}, FAULT, "python3.11 has no headers"),
        ({"python3.11": "echo No module named ensurepip >&2; exit 1"}, FAULT, "No module named ensurepip"),
        ({"python3.11": "echo 'pyenv: not found' >&2; exit 127"}, FAULT, "none of 3.11"),
    ],
)
def test_interpreters(tools: Path, scripts: dict[str, str], state: str, told: str) -> None:
    for name, script in scripts.items():
        program(tools, name, script)
    found = by_name(programs.interpreters())["Python"]
    assert found.state == state and told in found.found, found


@pytest.mark.parametrize(
    ("name", "machine_type", "libc", "state", "told"),
    [
        ("Linux", "x86_64", ("glibc", "2.36"), OK, "glibc 2.36"),
        ("Linux", "x86_64", ("glibc", "2.17"), FAULT, "need glibc 2.28"),
        ("Linux", "x86_64", ("", ""), FAULT, "need glibc 2.28"),
        ("Linux", "aarch64", ("glibc", "2.36"), WARN, "made for x86_64"),
        ("Darwin", "arm64", ("", ""), FAULT, "Apple silicon is not supported"),
        ("Windows", "AMD64", ("", ""), FAULT, "not supported"),
    ],
)
def test_systems(
    monkeypatch: pytest.MonkeyPatch, name: str, machine_type: str, libc: tuple[str, str], state: str, told: str
) -> None:
    monkeypatch.setattr(programs.platform, "system", lambda: name)
    monkeypatch.setattr(programs.platform, "machine", lambda: machine_type)
    monkeypatch.setattr(programs.platform, "libc_ver", lambda: libc)
    (found,) = programs.system()
    assert found.state == state and told in found.found, found
    assert bool(found.mend) == (state != OK)


def test_git_that_refuses_a_folder_of_another_user(tools: Path) -> None:
    program(tools, "git", "echo \"fatal: detected dubious ownership in repository at '/x'\" >&2; exit 128")
    (found,) = programs.revision()
    assert found.state == WARN and "safe.directory" in found.mend


def test_an_encoding_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.locale, "getpreferredencoding", lambda _: "GB18030")
    monkeypatch.setenv("PYTHONHOME", "/usr")
    found = by_name(programs.settings())
    assert found["encoding"].state == WARN and "LC_ALL" in found["encoding"].mend
    assert found["PYTHONHOME"].mend == "unset PYTHONHOME"
    assert "PYTHONHOME" in found["settings"].found and "/usr" not in found["settings"].found


# ---- accelerators

GPU_LOCK = "nvidia-cuda-runtime==13.0.96\nnvidia-cuda-runtime-cu12==12.9.79\ntorch==2.13.0\n"


def nvidia_smi(tools: Path, rows: str, cuda: str) -> None:
    header = f'echo "| NVIDIA-SMI 580.1   Driver Version: 580.1   CUDA Version: {cuda}     |"'
    program(tools, "nvidia-smi", f"case $1 in --query*) printf '{rows}' ;; *) {header} ;; esac")


@pytest.mark.parametrize(
    ("rows", "cuda", "expected"),
    [
        ("H100, 81559, 580.1, 9.0\\n" * 8, "13.0", {"NVIDIA": OK, "CUDA": OK, ".venv": WARN}),
        ("H100, 81559, 550.1, 9.0\\n", "12.4", {"NVIDIA": OK, "CUDA": WARN}),
        ("V100, 32768, 580.1, 7.0\\n", "13.0", {"NVIDIA": OK, "CUDA": OK, "GPU age": WARN, ".venv": WARN}),
        ("T4, 15360, 580.1, 7.5\\n", "13.0", {"NVIDIA": OK, "CUDA": OK, "GPU age": WARN, ".venv": WARN}),
        ("GB10, [N/A], 580.1, 12.1\\n", "13.1", {"NVIDIA": OK, "CUDA": OK, ".venv": WARN}),
    ],
)
def test_gpus(repository: Path, root: Path, tools: Path, rows: str, cuda: str, expected: dict[str, str]) -> None:
    write(repository / "environments/gpu.lock", GPU_LOCK)
    nvidia_smi(tools, rows, cuda)
    found = by_name(accelerators.nvidia())
    assert {name: finding.state for name, finding in found.items()} == expected
    assert found["NVIDIA"].found.startswith(f"{rows.count('n') if 'H100' in rows else 1} x ")
    assert f"supports {cuda}" in found["CUDA"].found or f"CUDA {cuda}; gpu.lock needs 13" in found["CUDA"].found
    if ".venv" in found:
        assert found[".venv"].mend == "make env-gpu"


def test_a_driver_that_is_too_old_for_what_is_installed(repository: Path, root: Path, tools: Path) -> None:
    write(repository / "environments/gpu.lock", GPU_LOCK)
    write(repository / ".venv/.stamp", "gpu 0\n")
    nvidia_smi(tools, "A100, 81920, 535.1, 8.0\\n", "12.2")
    found = by_name(accelerators.nvidia())["CUDA"]
    assert found.state == FAULT and ".venv was made for GPUs" in found.found


def test_gpus_that_cannot_be_used(root: Path, tools: Path) -> None:
    assert by_name(accelerators.nvidia())["NVIDIA"].state == INFO
    write(root / "sys/bus/pci/devices/0/class", "0x030200\n")
    write(root / "sys/bus/pci/devices/0/vendor", "0x10de\n")
    assert by_name(accelerators.nvidia())["NVIDIA"].mend == "install NVIDIA's driver"
    write(root / "dev/nvidiactl")
    assert "not installed" in by_name(accelerators.nvidia())["NVIDIA"].found
    program(tools, "nvidia-smi", "echo Failed to initialize NVML: Driver/library version mismatch; exit 18")
    found = by_name(accelerators.nvidia())["NVIDIA"]
    assert found.state == WARN and "version mismatch" in found.found and "--gpus all" in found.mend


def test_other_accelerators_are_told(root: Path, tools: Path) -> None:
    assert not list(accelerators.other_accelerators())
    write(root / "dev/kfd")
    write(root / "dev/davinci_manager")
    found = by_name(accelerators.other_accelerators())
    assert set(found) == {"AMD", "Ascend"} and "not supported" in found["AMD"].found


def test_cuda_of_the_lock_files() -> None:
    assert accelerators.cuda_of("gpu") == accelerators.cuda_of("serve-gpu") == 13
    assert accelerators.cuda_of("train") == accelerators.cuda_of("") == 0


# ---- machine


@pytest.mark.parametrize(("free", "state"), [(100e9, OK), (20e9, WARN), (1e9, FAULT)])
def test_disks(monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(2**40, 0, free))
    found = [finding for finding in machine.disks() if finding.name == "disk"]
    assert {finding.state for finding in found} == {state}
    assert all(bool(finding.mend) == (state != OK) for finding in found)
    assert all(word in " ".join(one.found for one in found) for word in ("runs/", "cache", "environments"))


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(layout, "cache_folder", homeless)
    found = by_name(machine.disks())
    assert found["home"].mend.startswith("export HOME") and "environments" in found["disk"].found


CGROUP_2 = {"proc/self/cgroup": "0::/job/step\n"}
CGROUP_1 = {"proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "state", "told"),
    [
        ({}, OK, "16 GB available"),
        ({**CGROUP_2, "sys/fs/cgroup/job/memory.max": "4000000000\n"}, WARN, "4.0 GB available (limit"),
        ({**CGROUP_2, "sys/fs/cgroup/job/memory.max": "max\n"}, OK, "16 GB available"),
        ({**CGROUP_1, "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2000000000\n"}, WARN, "2.0 GB"),
        # version 1 without a namespace: the container's own folder is the top one
        ({**CGROUP_1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000\n"}, WARN, "2.0 GB"),
        ({**CGROUP_1, "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, OK, "16 GB"),
    ],
)
def test_memory(root: Path, files: dict[str, str], state: str, told: str) -> None:
    write(root / "proc/meminfo", "MemTotal: 99 kB\nMemAvailable:   16000000 kB\n")
    for path, text in files.items():
        write(root / path, text)
    (found,) = machine.memory()
    assert found.state == state and told in found.found, found


@pytest.mark.parametrize(
    ("files", "state", "told"),
    [
        ({}, OK, "8"),
        ({**CGROUP_2, "sys/fs/cgroup/job/cpu.max": "150000 100000\n"}, WARN, "1.5 of the machine's 8"),
        ({**CGROUP_2, "sys/fs/cgroup/job/cpu.max": "max 100000\n"}, OK, "8"),
        (
            {
                **CGROUP_1,
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            OK,
            "4 of the machine's 8",
        ),
        ({**CGROUP_1, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1\n"}, OK, "8"),
    ],
)
def test_cores(root: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], state: str, told: str) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 8)
    for path, text in files.items():
        write(root / path, text)
    (found,) = machine.cores()
    assert found.state == state and found.found.startswith(told), found


def test_shared_memory_and_open_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(2**26, 0, 1))
    (root / "dev/shm").mkdir(parents=True)
    (found,) = machine.shared_memory()
    assert found.state == WARN and "67 MB" in found.found and "--shm-size" in found.mend
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (256, 4096))
    (found,) = machine.open_files()
    assert found.state == WARN and found.mend == "ulimit -n 4096"


def test_the_file_system_of_runs(repository: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["1 0 0:1 / / rw - ext4 /dev/a rw", f"2 1 0:2 / {repository.resolve()} rw shared:1 - nfs4 server:/a rw"]
    write(root / "proc/self/mountinfo", "\n".join(lines) + "\n")
    (found,) = machine.file_system()
    assert found.state == OK and found.found == "nfs4: locks and renames work"
    assert not list(repository.glob(".doctor-*"))

    monkeypatch.setattr(machine.fcntl, "flock", lambda *_: None)
    (found,) = machine.file_system()
    assert found.state == WARN and "no effect" in found.found

    def refuses(number: int) -> Callable[..., None]:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(machine.fcntl, "flock", refuses(machine.errno.ENOLCK))
    (found,) = machine.file_system()
    assert found.state == WARN and "no locks" in found.found and "local_lock" in found.mend
    monkeypatch.setattr(machine.fcntl, "flock", refuses(machine.errno.EROFS))
    (found,) = machine.file_system()
    assert found.state == WARN and "cannot be written" in found.found


# ---- network


@pytest.fixture
def server() -> Iterable[str]:
    """A server that answers with the number in the path, and 401 unless it is asked with name:word."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            number = re.search(r"\d{3}", self.path)
            allowed = "private" not in self.path or self.headers.get("Authorization") == "Basic bmFtZTp3b3Jk"
            self.send_response(int(number[0]) if number else 200 if allowed else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.fixture
def no_settings(tools: Path, root: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if re.match(r"(?i)(pip|uv|hf|myllm|xdg)_|.*_proxy$", name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(network.sys, "executable", "/gone/python")
    write(repository / "preprocess/sources/sources.yaml", (REPOSITORY / "preprocess/sources/sources.yaml").read_text())


def test_addresses_that_answer_and_do_not(no_settings: None, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.obstacle(f"http://{server}/simple") == ""
    assert network.obstacle(f"http://name:word@{server}/private") == ""
    assert network.obstacle(f"http://name:wrong@{server}/private").startswith("it answers 401")
    assert network.obstacle(f"http://{server}/407").startswith("it answers 407")
    assert "refused" in network.obstacle("http://127.0.0.1:9/")
    assert network.obstacle("not an address")


def test_the_addresses_are_those_of_the_settings(
    no_settings: None, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(network, "obstacle", lambda url: asked.append(url) or "")
    list(network.network())
    wiki = ["https://dumps.wikimedia.org/zhwiki/latest", "https://dumps.wikimedia.your.org/zhwiki/latest"]
    assert sorted(asked) == sorted([
        "https://pypi.org/simple/pip/", "https://download.pytorch.org/whl/cpu", "https://huggingface.co",
        "https://registry.npmjs.org", *wiki,
    ])  # fmt: skip

    asked.clear()
    program(tools, "python3.11", "echo \"global.index-url='https://pip.example/simple'\"")
    program(tools, "npm", "echo https://npm.example/")
    write(Path(os.environ["HOME"]) / ".config/uv/uv.toml", '[[index]]\nurl = "https://uv.example/simple/"\n')
    monkeypatch.setenv("HF_ENDPOINT", "https://hf.example")
    monkeypatch.setenv("PIP_FIND_LINKS", "/gone/wheels")
    found = by_name(network.network())
    assert sorted(asked) == sorted([
        "https://pip.example/simple/pip/", "https://uv.example/simple/pip/", "https://hf.example",
        "https://npm.example/", *wiki,
    ])  # fmt: skip
    assert found["wheels"].state == WARN and "/gone/wheels" in found["wheels"].found


def test_what_mends_an_address(no_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def blocked(url: str) -> str:
        return "" if "your.org" in url or "pip.example" in url else "timed out"

    monkeypatch.setattr(network, "obstacle", blocked)
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example/simple")
    found = by_name(network.network())
    assert found["pip"].state == OK and found["uv"].state == WARN and "uv does not read" in found["uv"].mend
    assert found["Wikipedia dumps"].state == OK and found["Wikipedia dumps"].found == "dumps.wikimedia.your.org"
    assert "HF_ENDPOINT" in found["Hugging Face"].mend and "https_proxy" in found["Hugging Face"].mend
    assert "npm config set registry" in found["npm registry"].mend
    assert found["PyTorch"].state == WARN
    monkeypatch.setattr(network, "obstacle", lambda _: "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    assert "SSL_CERT_FILE" in by_name(network.network())["Hugging Face"].mend


def test_secrets_and_private_hosts_are_not_shown(
    no_settings: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://alice:s3cr3t@proxy.corp.example:3128")
    monkeypatch.setenv("all_proxy", "alice:s3cr3t@proxy.corp.example:3128")
    monkeypatch.setenv("no_proxy", "corp.example")
    monkeypatch.setenv("PIP_INDEX_URL", "https://alice:s3cr3t@pip.corp.example/simple")
    monkeypatch.setenv("HF_TOKEN", "a-token-of-mine")
    told = "refused a-token-of-mine hf_ABCDEFGHIJ0123456789 http://bob:s3cr3t@x"
    monkeypatch.setattr(network, "obstacle", lambda _: told)
    monkeypatch.setattr(doctor, "CHECKS", (Check("Network", "network", network.network),))
    for options in ([], ["--json"], ["--report"]):
        parser = doctor.argparse.ArgumentParser()
        doctor.add_arguments(parser)
        assert doctor.run(parser.parse_args(options)) == 0
        said = capsys.readouterr().out
        assert not re.search(r"s3cr3t|alice|bob|a-token|hf_A", said), said
        assert ("corp.example" in said) == (options != ["--report"])
        assert "huggingface.co" in said and "HF_ENDPOINT" in said


# ---- Slurm


def test_slurm(tools: Path, root: Path) -> None:
    assert by_name(slurm.slurm())["sinfo"].state == INFO
    program(tools, "sinfo", "echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1")
    assert "configuration source" in by_name(slurm.slurm())["sinfo"].found
    rows = "gpu*|up|2|idle|gpu:h100:8|1-00:00:00\\nold|down|1|drained|(null)|infinite\\n"
    program(tools, "sinfo", f"case $1 in --version) echo slurm 24.05 ;; *) printf '{rows}' ;; esac")
    found = by_name(slurm.slurm())
    assert found["sinfo"].found == "slurm 24.05"
    assert found["partition gpu*"].found == "up, 2 nodes idle, GRES gpu:h100:8, limit 1-00:00:00"
    assert found["partition old"].state == WARN
    assert "cannot be known" in found["shared folders"].found


# ---- the whole


def test_a_check_that_raises_or_hangs_does_not_stop_the_others() -> None:
    def raises() -> Iterable[Finding]:
        yield Finding("before", OK, "found")
        raise ZeroDivisionError("a strange machine")

    def hangs() -> Iterable[Finding]:
        threading.Event().wait()
        return []

    checks = (Check("A", "one", raises), Check("A", "two", hangs), Check("B", "three", lambda: [Finding("c", OK, "x")]))
    found = doctor.examine(checks, patience=0.2)
    assert [(one.group, one.name, one.state) for one in found] == [
        ("A", "before", OK), ("A", "one", WARN), ("A", "two", WARN), ("B", "c", OK),
    ]  # fmt: skip
    assert found[1].found == "could not check: ZeroDivisionError: a strange machine"
    assert found[2].found.startswith("could not check: no answer")


def test_a_program_that_does_not_answer(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PROGRAM_WAIT", 0.2)
    program(tools, "nvidia-smi", "exec /bin/sleep 60")
    assert base.ask("nvidia-smi")[1].startswith("no answer")
    program(tools, "g++", "\x00")
    assert base.ask("g++")[0] == ""


def test_the_table() -> None:
    found = [
        Finding("short", OK, "one", group="A"),
        Finding("longer", FAULT, "two\nlines", "mend it", group="A"),
        Finding("x", WARN, "three", group="B"),
    ]
    assert doctor.table(found).splitlines() == [
        "A",
        "  ok     short   one",
        "  FAULT  longer  two lines",
        "                 -> mend it",
        "B",
        "  warn   x       three",
        "1 fault, 1 warning",
    ]


def test_a_report_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/zhangsan")
    monkeypatch.setattr(doctor.platform, "node", lambda: "gpu07.corp")
    monkeypatch.setattr(doctor.getpass, "getuser", lambda: "zhangsan")
    text = doctor.without_names(f"/home/zhangsan/x /data/zhangsan/y on gpu07.corp, gpu07 {REPOSITORY}/runs gpu070")
    assert text == "~/x /data/USER/y on HOST, HOST REPOSITORY/runs gpu070"
    monkeypatch.setattr(doctor.getpass, "getuser", lambda: "root")
    monkeypatch.setenv("HOME", "/root")
    assert doctor.without_names("/root/x /rootless root") == "~/x /rootless root"


def test_the_checks_of_a_group_stay_together() -> None:
    groups = [check.group for check in CHECKS]
    assert sorted(groups, key=groups.index) == groups


@pytest.mark.parametrize("options", [[], ["--report"], ["--json"]])
@pytest.mark.parametrize("isolated", [True, False])
def test_the_real_command_needs_the_standard_library_alone(options: list[str], isolated: bool) -> None:
    """-S: no site-packages; -I: no settings of Python and no folder of the user either."""
    if isolated:
        path = f"import runpy, sys; sys.path.insert(0, {str(REPOSITORY)!r})"
        code = f"{path}; runpy.run_module('launch.doctor', run_name='__main__', alter_sys=True)"
        command = [sys.executable, "-I", "-S", "-c", code]
    else:
        command = [sys.executable, "-m", "launch.doctor"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [*command, "--offline", *options], cwd=REPOSITORY, capture_output=True, text=True, env=environment
    )
    assert done.returncode in (0, 2), done.stderr
    assert not done.stderr
    if "--json" in options:
        said = json.loads(done.stdout)
        assert {"group", "name", "state", "found", "mend"} == set(said["findings"][0])
        assert {one["state"] for one in said["findings"]} <= {OK, INFO, WARN, FAULT}
        assert (said["faults"] > 0) == (done.returncode == 2)
        assert all(one["mend"] for one in said["findings"] if one["state"] == FAULT)
        assert not any("could not check" in one["found"] for one in said["findings"]), said
    else:
        assert ".venv " in done.stdout and re.search(r"^\d+ faults?, \d+ warnings?$", done.stdout, re.M)
        assert done.stdout.startswith("```text\n") == ("--report" in options)
        assert "Network" not in done.stdout
    if "--report" in options:
        assert str(Path.home()) + "/" not in done.stdout and str(REPOSITORY) not in done.stdout


def test_help_shows_examples() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.doctor", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "myllm doctor --report" in done.stdout and "--offline" in done.stdout


def test_a_package_for_another_python_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launch.doctor_checks import environments

    (tmp_path / "environments").mkdir()
    lock = 'numpy==2.1.0\naudioop-lts==0.2.2 ; python_version >= "3.13"\n'
    (tmp_path / "environments" / "train.lock").write_text(lock)
    monkeypatch.setattr(environments.layout, "REPOSITORY", tmp_path)
    assert environments.pins_of("train", "3.11.7") == {"numpy": "2.1.0"}
    assert "audioop-lts" in environments.pins_of("train", "3.13.1") and "audioop-lts" in environments.pins_of("train")

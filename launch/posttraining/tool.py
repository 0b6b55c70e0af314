"""Run the upstream command of a post-training: print and log its output, show progress, find the reason of a failure.

llamafactory-cli train|export X.yaml      every recipe but GRPO; for PPO, trl 0.9.6 is put first on the path
python -m launch.posttraining.grpo --config X.yaml     GRPO: TRL's parser and trainer (`trl grpo` reads the same file)
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from artifacts.errors import UserError
from artifacts.files import read_yaml
from artifacts.processes import die_with_parent, without_proxy
from artifacts.tool_errors import FirstError
from launch.posttraining import reward_server
from launch.posttraining.job import OVERLAY, TRL, Job


def command(job: Job) -> list[str]:
    if job.tool != TRL:
        program = Path(sys.executable).with_name("llamafactory-cli")
        # if the package comes from PYTHONPATH, there is no llamafactory-cli beside python
        tool = [str(program)] if program.exists() else [sys.executable, "-m", "llamafactory.cli"]
        return [*tool, "export" if job.exports else "train", str(job.yaml)]
    runner = ["-m", "launch.posttraining.grpo", "--config", str(job.yaml)]
    if not job.environment.get("FORCE_TORCHRUN"):
        return [sys.executable, *runner]
    names = {"NPROC_PER_NODE": "--nproc-per-node", "NNODES": "--nnodes", "NODE_RANK": "--node-rank",
             "MASTER_ADDR": "--master-addr", "MASTER_PORT": "--master-port"}  # fmt: skip
    given = [f"{flag}={job.environment[name]}" for name, flag in names.items() if name in job.environment]
    return [sys.executable, "-m", "torch.distributed.run", *given, *runner]


def added_environment(job: Job) -> dict[str, str]:
    """Variables added to the caller's environment; the caller's own OMP_WAIT_POLICY wins.

    Hugging Face works offline. Idle threads sleep instead of spinning: on shared cores, a spinning thread takes the
    core from the thread that it waits for.
    """
    added = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY") or "PASSIVE"}
    if job.tool == TRL:
        # the shared cache of `datasets` confuses local folders of the same name and could return another run's rows
        added["HF_DATASETS_CACHE"] = str(job.work / "cache")
    else:
        added |= job.environment
    if job.judge:
        added |= without_proxy(reward_server.HOST)
    if job.stage == "ppo":  # LLaMA-Factory's PPO needs trl 0.9.6, its other stages a newer one
        added |= {"PYTHONPATH": str(OVERLAY), "DISABLE_VERSION_CHECK": "1"}
    return added


def child_environment(job: Job) -> dict[str, str]:
    """The tool's environment. It allows compiled bytecode, without which every start takes 10 s longer."""
    programs = str(Path(sys.executable).parent)  # LLaMA-Factory starts `torchrun` by name
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
        **added_environment(job),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def shown(job: Job) -> str:
    """The command as a shell line."""
    prefix = " ".join(f"{key}={shlex.quote(value)}" for key, value in added_environment(job).items())
    judge = f"{shlex.join(reward_server.command(job.judge, job.reward_port))} &\n" if job.judge else ""
    return f"{judge}{prefix} {shlex.join(command(job))}"


@contextmanager
def reward_model(job: Job) -> Iterator[None]:
    """Serve the job's reward model while the tool runs, if PPO calls it over HTTP."""
    if not job.judge:
        yield
        return
    # the port in the YAML file, which the first machine of the training has written
    port = urlsplit(read_yaml(job.yaml)["reward_model"]).port
    with reward_server.serving(job.judge, int(port or 0), job.work / f"reward_model.{job.node}.log"):
        yield


def follow_progress(log: Path, stop: threading.Event) -> None:
    """Print `progress N/M steps` from the tool's trainer_log.jsonl, at most once a second, until `stop` is set."""
    last_shown = ""
    while not stop.wait(1.0):
        try:
            last = log.read_text(encoding="utf-8").splitlines()[-1]
            entry = json.loads(last)
            line = f"progress {entry['current_steps']}/{entry['total_steps']} steps"
        except (OSError, IndexError, ValueError, KeyError):
            continue  # the file does not exist yet, or its last line is incomplete
        if line != last_shown:
            last_shown = line
            print(line, flush=True)


def reason_of(tail: bytes) -> str:
    """Why a tool failed without a traceback, from the end of its output: the last error, else the last line."""
    lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
    kinds = ("Error", "Exception", "error")
    errors = [
        line for line in lines if ":" in line and line.split(":")[0].endswith(kinds) and " " not in line.split(":")[0]
    ]
    return (errors or lines or ["no output"])[-1].removeprefix("error: ")


def run_tool(job: Job) -> float:
    """Run the tool, print its output and append it to `<output>.work/log`; returns seconds.

    The tool stays in this process group, so that a kill of the group ends it too.

    Raises:
        UserError: the tool failed; the message holds the reason from its output.
    """
    log = job.work / ("log" if job.node == 0 else f"log.{job.node}")
    name = "launch.posttraining.grpo" if job.tool == TRL else "llamafactory-cli"
    started = time.monotonic()
    stop = threading.Event()
    follower = threading.Thread(target=follow_progress, args=(job.raw / "trainer_log.jsonl", stop), daemon=True)
    tail, rest, first = b"", b"", FirstError()
    with log.open("ab") as kept, reward_model(job):
        process = subprocess.Popen(
            command(job), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=child_environment(job), bufsize=0,
            preexec_fn=die_with_parent,
        )  # fmt: skip
        assert process.stdout is not None
        follower.start()
        try:
            while chunk := process.stdout.read(1 << 16):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                kept.write(chunk)
                tail = (tail + chunk)[-8000:]
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    first.feed(line.decode(errors="replace"))
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            stop.set()
            follower.join()
    if code:
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else first.text or reason_of(tail)
        if code == -signal.SIGKILL:
            reason += ", perhaps out of memory: lower per_device_train_batch_size"
        raise UserError(f"{name} failed: {reason} (log: {log})")
    return time.monotonic() - started

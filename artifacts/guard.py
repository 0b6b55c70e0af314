"""Start a program so that it and its child processes end when the caller ends, even if the caller is killed.

vLLM and OpenCompass start child processes. `kill -9` of a stage must leave none of them running, and a killed process
cannot clean up. So the program runs in its own session under this small guard, which holds the read end of a pipe. The
caller holds the write end. When the caller dies for any reason, the kernel closes the pipe and the guard kills the
session's process group.

    from artifacts.guard import Guarded
    with Guarded(["vllm", "serve", …], env=…, log=Path("vllm.log")) as server: …
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 10.0


class Guarded:
    """A running program. Its output is appended to `log`, or goes to the caller's output if there is no `log`."""

    def __init__(
        self, command: list[str], env: dict[str, str] | None = None, cwd: Path | None = None, log: Path | None = None
    ) -> None:
        watched, self._alive = os.pipe()
        guard = [sys.executable, str(Path(__file__).resolve()), str(watched), *command]
        try:
            stream = open(log, "ab") if log else None  # noqa: SIM115  # the child keeps it
            try:
                self.process = subprocess.Popen(
                    guard,
                    env=env,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT if stream else None,
                    pass_fds=[watched],
                    start_new_session=True,
                )
            finally:
                if stream:
                    stream.close()
        finally:
            os.close(watched)

    def poll(self) -> int | None:
        """Exit status of the program; None while it runs."""
        return self.process.poll()

    def wait(self, timeout: float | None = None) -> int:
        return self.process.wait(timeout)

    def stop(self) -> None:
        """Send SIGTERM, wait up to `GRACE_SECONDS`, then SIGKILL the whole group. Returns when all have ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(GRACE_SECONDS + 5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def __enter__(self) -> Guarded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _die_with_guard(guard: int) -> None:
    """Runs in the program's process before it starts: make it die when the guard is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(1)


def _end_group() -> None:
    """Kill every process of this session's group except this one, which still has to return an exit status."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    me, deadline = os.getpid(), time.monotonic() + 1.0
    while time.monotonic() < deadline and _group_members(me):
        time.sleep(0.02)
    for process in _group_members(me):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _group_members(group: int) -> list[int]:
    """Running processes of a process group except its leader (Linux: /proc/<pid>/stat, fields 3 state and 5 pgrp)."""
    members = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != group:
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z" and int(fields[2]) == group:
                members.append(int(entry))
    return members


def main() -> int:
    """The guard: `guard.py PIPE_FD COMMAND…`; returns the command's exit status (128 + N for a signal N)."""
    pipe, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(pipe, False)
    me = os.getpid()
    stopping_at = 0.0

    def forward(_number: int, _frame: object) -> None:
        nonlocal stopping_at
        stopping_at = stopping_at or time.monotonic()
        child.terminate()

    child = subprocess.Popen(command, preexec_fn=lambda: _die_with_guard(me))  # noqa: PLW1509  # one thread
    signal.signal(signal.SIGTERM, forward)
    while child.poll() is None:
        readable, _, _ = select.select([pipe], [], [], 0.1)
        if readable:
            # Nothing is written to the pipe: readable means closed, so the caller is dead. Kill without a grace period.
            os.killpg(0, signal.SIGKILL)
        if stopping_at and time.monotonic() - stopping_at > GRACE_SECONDS:
            child.kill()
    _end_group()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())

"""Helpers for child processes: end with the parent, bypass the proxy, find a free port."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when its parent dies; else it could overwrite files of the next run.

    Call it in the child: as `initializer` of a pool, or as `preexec_fn`. For Linux the parent is the *thread* that
    started the child. `parent` is the expected parent process id: if that process is already dead, the child exits.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def without_proxy(*hosts: str) -> dict[str, str]:
    """Environment variables that add these hosts to those that are reached without a proxy.

    Both spellings are set: most libraries read the lower-case one first, and some read only the upper-case one.
    """
    known = [os.environ.get("no_proxy"), os.environ.get("NO_PROXY")]
    value = "*" if "*" in known else ",".join(dict.fromkeys(filter(None, [*known, *hosts])))
    return {"no_proxy": value, "NO_PROXY": value}


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])

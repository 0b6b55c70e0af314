"""Processes that end with the one that started them, and reach the servers of this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to kill this process when its parent dies: left alone, it would write the files of the next run.

    For a child to call: an `initializer` of a pool, or a `preexec_fn`. To Linux the parent is the *thread* that started
    it. `parent` is the process id it should have: when that one is dead already, the child ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def without_proxy(*hosts: str) -> dict[str, str]:
    """Environment variables by which these hosts are reached directly, besides those that were so already.

    In both spellings: most libraries read the small one first, and some only the other.
    """
    known = [os.environ.get("no_proxy"), os.environ.get("NO_PROXY")]
    value = "*" if "*" in known else ",".join(dict.fromkeys(filter(None, [*known, *hosts])))
    return {"no_proxy": value, "NO_PROXY": value}


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])

"""Where the examples find the server: its address, its key and its model. Shared by the examples, stdlib only."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Run as files (`python examples/langchain_chat.py`), the examples find the project's own client beside them.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from artifacts.errors import run_main
from artifacts.processes import without_proxy
from launch.serving.client import Address, connect

__all__ = ["Address", "parser", "reach", "run_main"]


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every example asks: the server and the model."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--server", default="http://127.0.0.1:8000", metavar="URL", help="default: %(default)s")
    made.add_argument("--model", help="which of the server's models (default: its first)")
    return made


def reach(arguments: argparse.Namespace) -> Address:
    """The running server; raises UserError in one line. A proxy of this machine's environment is not for 127.0.0.1."""
    os.environ |= without_proxy("127.0.0.1", "localhost")
    return connect(arguments.server, arguments.model)

"""Find the server's address, key and model. Shared by the examples; standard library only."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# For examples that are run as files (`python examples/langchain_chat.py`), to import the project's client.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from artifacts.errors import run_main
from artifacts.processes import without_proxy
from launch.serving.client import Address, connect

__all__ = ["Address", "parser", "reach", "run_main"]


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with the options of every example: --server and --model."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--server", default="http://127.0.0.1:8000", metavar="URL", help="address of the server (default: %(default)s)"
    )
    made.add_argument("--model", help="model on the server (default: its first)")
    return made


def reach(arguments: argparse.Namespace) -> Address:
    """Connect to the running server, without a proxy for 127.0.0.1. Raises UserError if that fails."""
    os.environ |= without_proxy("127.0.0.1", "localhost")
    return connect(arguments.server, arguments.model)

"""What several test files of post-training start from; models are made once for all workers of pytest-xdist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from posttrain_kit import finish, made_once, make_data, make_model, sft_arguments, start, warm_tools


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of launcher and LLaMA-Factory with their imports made: for `start`. See warm_tools.py."""
    with warm_tools(tmp_path_factory.mktemp("warm") / "main") as socket:
        yield socket


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, a model, and `data`."""

    def make(folder: Path) -> None:
        make_model(folder / "base")
        make_data(folder / "data")

    return made_once(tmp_path_factory, "posttrain", make)


@pytest.fixture(scope="session")
def sft(tmp_path_factory: pytest.TempPathFactory, ground: Path) -> Path:
    """The chat model of an undisturbed run of the command itself, with `metrics.json` beside it."""

    def make(folder: Path) -> None:
        variables = {"MYLLM_METRICS": str(folder / "metrics.json")}
        finish(start(*sft_arguments(ground, folder / "sft"), env=variables))

    return made_once(tmp_path_factory, "posttrain-sft", make) / "sft"

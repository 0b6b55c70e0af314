"""Paths: the repository, its environments, the cache, and the folders of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import UserError, nearest

REPOSITORY = Path(__file__).resolve().parent.parent

ENVIRONMENTS = {
    "train": ".venv",
    "eval": ".venv-eval",
    "serve": ".venv-serve",
    "lmdeploy": ".venv-lmdeploy",
    "lmeval": ".venv-lmeval",
    "clients": ".venv-clients",
}


def environment(name: str) -> Path:
    """Folder of an environment, e.g. `.venv-serve` for `serve`. Raises UserError if it does not exist."""
    folder = REPOSITORY / ENVIRONMENTS[name]
    if not (folder / "bin" / "python").exists():
        raise UserError(f"the environment {folder.name} does not exist: run `make env-{name}`")
    return folder


def lock_of(name: str) -> str:
    """The lock that an environment was made from, e.g. `train`, `gpu` or `gpu-te` for `.venv`; empty if unknown."""
    try:
        return (REPOSITORY / ENVIRONMENTS[name] / ".stamp").read_text(encoding="utf-8").partition(" ")[0]
    except (OSError, ValueError):
        return ""


def cache_folder() -> Path:
    """Folder for downloads that all runs share: $MYLLM_CACHE, else `myllm` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "myllm"
    return Path(os.environ.get("MYLLM_CACHE", default))


@dataclass(frozen=True)
class Run:
    """The folders of a run, `runs/<name>/`. A later `phase` of pretraining has its own checkpoints and blend."""

    folder: Path
    phase: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    def of_phase(self, name: str) -> str:
        return f"{name}-{self.phase}" if self.phase else name

    @property
    def blend(self) -> Path:
        return self.dataset / f"{self.of_phase('blend')}.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / self.of_phase("checkpoints")

    @property
    def tensorboard(self) -> Path:
        return self.folder / self.of_phase("tensorboard")

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def evaluation(self) -> Path:
        return self.folder / "eval"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def manifests(self) -> Path:
        return self.folder / "manifests"


def relative(path: Path) -> str:
    """A path for messages: relative to the repository if it is inside, else absolute."""
    path = path.resolve()
    return str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)


def yaml_file(name: str, folder: Path, what: str) -> Path:
    """Find the YAML file of a setting: `name` is a file of `folder` without .yaml, or the path of any .yaml file.

    Raises:
        UserError: there is no such file; the message gives the closest name in `folder`.
    """
    by_path = name.endswith((".yaml", ".yml"))
    path = Path(name) if by_path else folder / f"{name}.yaml"
    if path.is_file():
        return path
    if by_path:
        raise UserError(f"{what} {name} does not exist: check the path")
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    raise UserError(
        f"there is no {what} {name!r}{nearest(name, known)}; {relative(folder)}/ has {', '.join(known)}. "
        "To use your own file, give its path, ending in .yaml"
    )

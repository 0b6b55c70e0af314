"""Where things lie: the repository's folders and environments, and the folders of a run."""

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
    """Folder of an environment, e.g. `.venv-serve` for `serve`; raises UserError when it was not made yet."""
    folder = REPOSITORY / ENVIRONMENTS[name]
    if not (folder / "bin" / "python").exists():
        raise UserError(f"the environment {folder.name} does not exist: run `make env-{name}`")
    return folder


def cache_folder() -> Path:
    """What is downloaded once and serves every run: $MYLLM_CACHE, else `myllm` under the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "myllm"
    return Path(os.environ.get("MYLLM_CACHE", default))


@dataclass(frozen=True)
class Run:
    """The folders of a run, `runs/<name>/`."""

    folder: Path

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

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

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
    """A path as the repository's user writes it: relative to the repository if it lies inside."""
    path = path.resolve()
    return str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)


def yaml_file(name: str, folder: Path, what: str) -> Path:
    """The YAML file that a setting names: a file of `folder` by its name alone, or any file by a path ending in .yaml.

    Raises:
        UserError: there is no such file; names the nearest of the folder.
    """
    by_path = name.endswith((".yaml", ".yml"))
    path = Path(name) if by_path else folder / f"{name}.yaml"
    if path.is_file():
        return path
    if by_path:
        raise UserError(f"{what} {name} does not exist")
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    raise UserError(
        f"there is no {what} {name!r}{nearest(name, known)}; {relative(folder)}/ has {', '.join(known)}. "
        "A file of your own is given by its path, ending in .yaml"
    )

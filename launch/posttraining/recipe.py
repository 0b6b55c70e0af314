"""Load post-training recipes and check their keys before anything heavy is imported.

A recipe is a file in `llamafactory_configs/`; a file of its `hardware/`, `--set`, `--seed` and `--track` override it.
Keys are LLaMA-Factory's own; in recipes whose name begins with `grpo` they are TRL's (`trl grpo --help` lists them).
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, nearest
from artifacts.files import read_yaml
from artifacts.layout import REPOSITORY, relative, yaml_file
from launch.posttraining.job import LLAMAFACTORY, TRL

RECIPES = REPOSITORY / "llamafactory_configs"
# Keys that the launcher sets for each run; a recipe may not set them.
RUN_KEYS = {
    LLAMAFACTORY: (
        "model_name_or_path", "adapter_name_or_path", "reward_model", "dataset_dir", "output_dir", "export_dir",
        "cache_dir", "logging_dir",
    ),
    TRL: (
        "model_name_or_path", "reward_model_name_or_path", "dataset_name", "datasets", "output_dir", "logging_dir",
        "resume_from_checkpoint",
    ),
}  # fmt: skip
EXPORT_GROUPS = ("model_args", "data_args", "finetuning_args", "generating_args")  # `export` has no training keys
NAMES = {LLAMAFACTORY: "LLaMA-Factory", TRL: "TRL"}
# Where each tool declares its keys: package and file for each group.
DECLARED = {
    LLAMAFACTORY: {
        **{f"{group}_args": ("llamafactory", f"hparams/{group}_args.py")
           for group in ("model", "data", "finetuning", "generating", "training")},
        "trainer": ("transformers", "training_args.py"),
        "trainer_seq2seq": ("transformers", "training_args_seq2seq.py"),
    },
    TRL: {
        "script": ("trl", "scripts/grpo.py"),
        "script_base": ("trl", "scripts/utils.py"),
        "config": ("trl", "trainer/grpo_config.py"),
        "model": ("trl", "trainer/model_config.py"),
        "trainer": ("transformers", "training_args.py"),
    },
}  # fmt: skip
NOT_KEYS = ("DatasetConfig",)  # a dataclass in these files that is a value, not a group of keys
TRACKERS = ("tensorboard", "wandb", "swanlab", "none")
# Environment variables with which LLaMA-Factory's launcher starts several processes; a hardware file may set them.
LAUNCH_VARIABLES = ("FORCE_TORCHRUN", "NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def tool_of(recipe: str) -> str:
    return TRL if Path(recipe).stem.startswith("grpo") else LLAMAFACTORY


@cache
def argument_types(tool: str = LLAMAFACTORY) -> dict[str, dict[str, str]]:
    """Names and annotations of a tool's arguments, by group (`model_args`, ..., `trainer`).

    They are read from the sources of the installed packages without an import, which takes ten seconds: a wrong key
    should be reported at once. A test compares the result with the real dataclasses.
    """
    types: dict[str, dict[str, str]] = {}
    for group, (package, file) in DECLARED[tool].items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise UserError(f"{package} is not installed in {sys.prefix}: run `make env-train` and use .venv/bin/myllm")
        tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
        types[group] = {
            node.target.id: ast.unparse(node.annotation)
            for holder in tree.body
            if isinstance(holder, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in holder.decorator_list)
            if holder.name not in NOT_KEYS
            for node in holder.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            if node.value is None or "init=False" not in ast.unparse(node.value)
            if "ClassVar" not in ast.unparse(node.annotation)
        }
    return types


def keys_of(tool: str) -> dict[str, str]:
    """Every key of a tool, with its annotation."""
    return {key: annotation for group in argument_types(tool).values() for key, annotation in group.items()}


def check_value(where: str, key: str, value: Any, annotation: str, tool: str = LLAMAFACTORY) -> Any:
    """Convert a value to the annotated type (`"1e-3"` becomes a float). Raises UserError if that is not possible.

    Only plain annotations are checked (bool, int, float, str, None, Literal); other values pass unchanged.
    """
    kinds = [kind.strip() for kind in re.sub(r"(Optional|Union)\[(.*)\]", r"\2, None", annotation).split("|")]
    kinds = [part.strip() for kind in kinds for part in ([kind] if "Literal" in kind else kind.split(","))]
    optional = "None" in kinds or "Optional" in annotation
    if value is None:
        if optional:
            return value
    elif annotation.startswith("Literal["):
        allowed = ast.literal_eval(annotation.removeprefix("Literal"))
        if value in allowed:
            return value
        raise UserError(f"{where}: {key} is {value!r}; {NAMES[tool]} allows {', '.join(map(str, allowed))}")
    elif not set(kinds) <= {"bool", "int", "float", "str", "None"}:
        return value
    elif isinstance(value, bool):
        if {"bool", "str"} & set(kinds):
            return value
    elif isinstance(value, int):
        if {"int", "float", "str"} & set(kinds):
            return value
    elif isinstance(value, float):
        if {"float", "str"} & set(kinds):
            return value
    elif isinstance(value, str):
        if "float" in kinds:  # YAML 1.1 reads 1e-3, without a dot, as text
            try:
                return float(value)
            except ValueError:
                pass
        if "str" in kinds:
            return value
    wanted = " or ".join(kind for kind in kinds if kind != "None")
    raise UserError(f"{where}: {key} is {value!r}, but {NAMES[tool]} needs {wanted}")


@dataclass(frozen=True)
class Recipe:
    """A recipe with all overrides applied."""

    tool: str  # LLAMAFACTORY or TRL
    settings: dict[str, Any]
    exports: bool  # `llamafactory-cli export`
    environment: dict[str, str]  # LAUNCH_VARIABLES that are set


def load(folder: Path, name: str, what: str) -> dict[str, Any]:
    """A YAML file of a folder, or one given by its path, as a mapping; UserError when there is none."""
    file = yaml_file(name, folder, what)
    loaded = read_yaml(file)
    if not isinstance(loaded, dict):
        raise UserError(f"{relative(file)} must hold `key: value` lines")
    return loaded


def launch_environment(hardware: str, given: dict[str, Any]) -> dict[str, str]:
    """The LAUNCH_VARIABLES in a hardware file's `environment:` with `$NAME` expanded; the caller's own values win.

    Raises:
        UserError: a variable is unknown, or a `$NAME` in the file is not set in the environment.
    """
    where = f"hardware/{Path(hardware).stem}.yaml, environment"
    found = {}
    for name, value in given.items():
        if name not in LAUNCH_VARIABLES:
            raise UserError(f"{where}: unknown variable {name!r}{nearest(name, LAUNCH_VARIABLES)}")
        text = os.environ.get(name) or os.path.expandvars(str(value))
        if "$" in text:
            raise UserError(f"{where}: {name} is {text}, which is not set: start it with srun, or set {name} yourself")
        found[name] = text
    found |= {name: os.environ[name] for name in LAUNCH_VARIABLES if os.environ.get(name)}
    return found if found.get("FORCE_TORCHRUN") else {}  # without it the others have no effect


def recipe_settings(
    recipe: str, hardware: str, overrides: Iterable[str], seed: int | None, track: str | None = None
) -> Recipe:
    """The recipe's settings with hardware file, `--set`, seed and tracker applied.

    Raises:
        UserError: an unknown recipe, hardware file or key (the message names the nearest valid one), or a wrong value.
    """
    import yaml

    tool = tool_of(recipe)
    other = LLAMAFACTORY if tool == TRL else TRL
    everything = keys_of(tool)
    first = load(RECIPES, recipe, "recipe")
    exports = tool == LLAMAFACTORY and not first.get("do_train", False)
    known = {key for group in EXPORT_GROUPS for key in argument_types(tool)[group]} if exports else set(everything)

    layers: list[tuple[str, dict[str, Any]]] = [(f"{Path(recipe).stem}.yaml", first)]
    machine = load(RECIPES / "hardware", hardware, "hardware file")
    given = machine.pop("environment", None) or {}
    environment = {} if exports else launch_environment(hardware, given)
    layers.append((f"hardware/{Path(hardware).stem}.yaml", machine))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}: write --set key=value")
        layers.append(("--set", {key: yaml.safe_load(text)}))
    if seed is not None and not exports:
        layers.append(("--seed", {"seed": seed}))
    if track is not None and not exports:
        layers.append(("--track", {"report_to": track}))

    settings: dict[str, Any] = {}
    for where, layer in layers:
        for key, value in layer.items():
            if key in RUN_KEYS[tool]:
                raise UserError(
                    f"{where}: {key} is set by the launcher: remove it and use --model, --data, --adapter, "
                    "--reward-model, --output-folder"
                )
            if key not in known:
                if where.startswith("hardware/") and (key in everything or key in keys_of(other)):
                    continue  # a hardware file may hold keys for training only, or for the other tool
                if key in everything:
                    raise UserError(f"{where}: `llamafactory-cli export` has no key {key!r}{nearest(key, known)}")
                raise UserError(f"{where}: {NAMES[tool]} has no key {key!r}{nearest(key, everything)}")
            settings[key] = check_value(where, key, value, everything[key], tool)
    if "seed" in settings:
        settings.setdefault("data_seed", settings["seed"])
        if seed is not None:
            settings["data_seed"] = seed
    check_tracker(settings.get("report_to"))
    return Recipe(tool, settings, exports, environment)


def check_tracker(report_to: Any) -> None:
    """Raise UserError if the tracker's package is not installed; transformers would report it only later."""
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name not in ("none", "all") and find_spec(name) is None:
            raise UserError(f"report_to is {name!r}, which is not installed: run {sys.prefix}/bin/pip install {name}")

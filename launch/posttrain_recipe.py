"""Post-training recipes: LLaMA-Factory's own keys, checked before anything heavy is imported.

A recipe is a file of `llamafactory_configs/`, with one of its `hardware/`, `--set` and `--seed` on top.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, nearest
from artifacts.files import read_yaml
from artifacts.layout import REPOSITORY

RECIPES = REPOSITORY / "llamafactory_configs"
# What the launcher decides for each run; a recipe that fixed one of them would not be a recipe.
RUN_KEYS = ("model_name_or_path", "adapter_name_or_path", "dataset_dir", "output_dir", "export_dir", "cache_dir")
EXPORT_GROUPS = ("model_args", "data_args", "finetuning_args", "generating_args")  # `export` knows no training keys


def argument_types() -> dict[str, dict[str, str]]:
    """LLaMA-Factory's argument names and annotations, by group (`model_args`, ..., `training_args`).

    Read from the sources of the installed packages without importing them: an import takes ten seconds, and a wrong
    key should be told at once. A test compares the result with the real dataclasses.
    """
    groups = {
        group: ("llamafactory", f"hparams/{group}.py")
        for group in ("model_args", "data_args", "finetuning_args", "generating_args", "training_args")
    }
    groups |= {
        "trainer": ("transformers", "training_args.py"),
        "trainer_seq2seq": ("transformers", "training_args_seq2seq.py"),
    }
    types: dict[str, dict[str, str]] = {}
    for group, (package, file) in groups.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise UserError(f"{package} is not installed in {sys.prefix}: run `make env-train` and use its python")
        tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
        types[group] = {
            node.target.id: ast.unparse(node.annotation)
            for holder in tree.body
            if isinstance(holder, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in holder.decorator_list)
            for node in holder.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            if node.value is None or "init=False" not in ast.unparse(node.value)
            if "ClassVar" not in ast.unparse(node.annotation)
        }
    return types


def check_value(where: str, key: str, value: Any, annotation: str) -> Any:
    """The value as LLaMA-Factory's annotation wants it (`"1e-3"` becomes a float); raises UserError when it cannot be.

    Only plain annotations are judged (bool, int, float, str, None, Literal); the rest passes.
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
        raise UserError(f"{where}: {key} is {value!r}; LLaMA-Factory allows {', '.join(map(str, allowed))}")
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
        if "float" in kinds:  # YAML 1.1 reads 1e-3, without a point, as text
            try:
                return float(value)
            except ValueError:
                pass
        if "str" in kinds:
            return value
    wanted = " or ".join(kind for kind in kinds if kind != "None")
    raise UserError(f"{where}: {key} is {value!r}, but LLaMA-Factory wants {wanted}")


def recipe_settings(recipe: str, hardware: str, overrides: Iterable[str], seed: int | None) -> tuple[dict, bool]:
    """The recipe's settings with hardware, `--set` and seed applied, and whether it is an export.

    Raises UserError for an unknown recipe, hardware file or key, naming the nearest valid one.
    """
    import yaml

    def load(folder: Path, name: str, what: str) -> dict[str, Any]:
        path = folder / f"{name}.yaml"
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        if name not in known:
            raise UserError(f"unknown {what} {name!r}{nearest(name, known)}; there are {', '.join(known)}")
        loaded = read_yaml(path)
        if not isinstance(loaded, dict):
            raise UserError(f"{path} is not a list of `key: value` lines")
        return loaded

    types = argument_types()
    everything = {key: annotation for group in types.values() for key, annotation in group.items()}
    exported = {key for group in EXPORT_GROUPS for key in types[group]}

    layers: list[tuple[str, dict[str, Any]]] = [(f"{recipe}.yaml", load(RECIPES, recipe, "recipe"))]
    exports = not layers[0][1].get("do_train", False)
    layers.append((f"hardware/{hardware}.yaml", load(RECIPES / "hardware", hardware, "hardware")))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}: write --set key=value")
        layers.append(("--set", {key: yaml.safe_load(text)}))
    if seed is not None and not exports:
        layers.append(("--seed", {"seed": seed}))

    settings: dict[str, Any] = {}
    for where, layer in layers:
        for key, value in layer.items():
            if key not in everything:
                raise UserError(f"{where}: LLaMA-Factory has no key {key!r}{nearest(key, everything)}")
            if key in RUN_KEYS:
                raise UserError(f"{where}: {key} is set by the launcher: use --model, --data, --adapter and --output")
            if exports and key not in exported:
                if where.startswith("hardware/"):
                    continue  # keys of training only
                raise UserError(f"{where}: `llamafactory-cli export` has no key {key!r}{nearest(key, exported)}")
            settings[key] = check_value(where, key, value, everything[key])
    if "seed" in settings:
        settings.setdefault("data_seed", settings["seed"])
        if seed is not None:
            settings["data_seed"] = seed
    return settings, exports

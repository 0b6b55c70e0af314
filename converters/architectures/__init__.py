"""One file per architecture. To add one, add a file here with these names; nothing else has to change.

MODEL_TYPE, ARCHITECTURE    `model_type` and class name in Hugging Face's config.json
FLAGS                       Megatron arguments, with their values, that a run of this architecture has; they tell
                            architectures apart, and allow what `converters.families.UNWANTED` refuses otherwise
model_rules(shape)          rules for the embedding, the last norm and the output layer (`converters.rules`)
layer_rules(shape)          rules for one transformer layer
config(shape)               the rest of config.json
shape_of(config)            the shape of a published model, from its config.json
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from artifacts.errors import UserError, nearest


def names() -> list[str]:
    """The architectures: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def adapter(name: str) -> Any:
    """The module of an architecture; UserError for an unknown one."""
    if name not in names():
        raise UserError(
            f"there is no architecture {name!r}{nearest(name, names())}; "
            f"converters/architectures/ has {', '.join(names())}"
        )
    return importlib.import_module(f"{__name__}.{name}")


def adapter_of_arguments(arguments: Any, wanted: str | None = None) -> Any:
    """The architecture that a Megatron run trained: `wanted`, else the one whose FLAGS the run has.

    Raises:
        UserError: no architecture has the run's flags, or several have.
    """
    if wanted:
        return adapter(wanted)
    flags = {name: adapter(name).FLAGS for name in names() if adapter(name).FLAGS is not None}
    found = [name for name, own in flags.items() if all(getattr(arguments, key, None) == own[key] for key in own)]
    # the one that asks for the most flags: another may ask for a part of them
    most = max((len(flags[name]) for name in found), default=0)
    found = [name for name in found if len(flags[name]) == most]
    if len(found) != 1:
        raise UserError(
            f"the checkpoint's flags fit {' and '.join(found) or 'no architecture'}: choose one with --architecture: "
            f"{', '.join(names())}"
        )
    return adapter(found[0])


def adapter_of_config(config: dict[str, Any]) -> Any:
    """The architecture of a Hugging Face folder by its `model_type`; UserError when there is none for it."""
    known = {adapter(name).MODEL_TYPE: name for name in names()}
    found = config.get("model_type")
    if found not in known:
        raise UserError(f"config.json says model_type {found!r}; there are adapters for {', '.join(sorted(known))}")
    return adapter(known[found])

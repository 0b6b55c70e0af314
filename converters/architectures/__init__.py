"""One file per architecture. To add one, add a file that defines these names; no other code changes.

MODEL_TYPE, ARCHITECTURE    `model_type` and class name in Hugging Face's config.json
FLAGS                       Megatron arguments and their values that identify a run of this architecture; a flag of
                            `converters.families.UNWANTED` is allowed if it is listed here. None: another architecture
                            has the same flags, and this one is chosen only by --architecture
model_rules(shape)          rules for the embedding, the last norm and the output layer (`converters.rules`)
layer_rules(shape)          rules for one transformer layer
config(shape)               the rest of config.json
shape_of(config)            the shape of a published model, from its config.json
is_mine(config)             whether a config.json with this MODEL_TYPE is of this architecture; only where two
                            architectures share a MODEL_TYPE
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from artifacts.errors import UserError, nearest


def names() -> list[str]:
    """Names of the architectures, which are the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def adapter(name: str) -> Any:
    """The module of an architecture. Raises UserError for an unknown name."""
    if name not in names():
        raise UserError(
            f"there is no architecture {name!r}{nearest(name, names())}; "
            f"converters/architectures/ has {', '.join(names())}"
        )
    return importlib.import_module(f"{__name__}.{name}")


def adapter_of_arguments(arguments: Any, wanted: str | None = None) -> Any:
    """The module of the architecture of a Megatron run: `wanted`, else the one whose FLAGS match the run.

    Raises:
        UserError: no architecture matches the run's flags, or several do.
    """
    if wanted:
        return adapter(wanted)
    flags = {name: adapter(name).FLAGS for name in names() if adapter(name).FLAGS is not None}
    found = [name for name, own in flags.items() if all(getattr(arguments, key, None) == own[key] for key in own)]
    # keep the one with the most flags: another may list a subset of them
    most = max((len(flags[name]) for name in found), default=0)
    found = [name for name in found if len(flags[name]) == most]
    if len(found) != 1:
        raise UserError(
            f"the checkpoint's flags match {' and '.join(found) or 'no architecture'}: choose one with --architecture "
            f"({', '.join(names())})"
        )
    return adapter(found[0])


def adapter_of_config(config: dict[str, Any]) -> Any:
    """The module of an architecture by the `model_type` of config.json. Raises UserError if there is none."""
    adapters = [adapter(name) for name in names()]
    found = [each for each in adapters if each.MODEL_TYPE == config.get("model_type")]
    if len(found) > 1:
        found = [each for each in found if each.is_mine(config)]
    if not found:
        known = ", ".join(sorted({each.MODEL_TYPE for each in adapters}))
        raise UserError(
            f"config.json has model_type {config.get('model_type')!r}, which cannot be imported; supported: {known}"
        )
    return found[0]

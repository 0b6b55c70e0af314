"""OpenCC's conversion of Chinese text, from Traditional to Simplified, whatever stands in it.

    convert_many(["頭髮與發展", "看著窗外"], "t2s")        # ["头发与发展", "看著窗外"]

`preprocess.cleaning.simplify` decides what is to be converted.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.errors import UserError, nearest
from preprocess.cleaning.characters import TOP

CONFIGS = ("t2s", "tw2s", "hk2s")
SEPARATOR = "\x1e"  # not NUL: OpenCC's tw2s stops there
IDEOGRAPHS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480))
RARE = ("TSCharactersExt.ocd2",)  # dictionaries that only rare ideographs need, besides the normalisation


@cache
def converter(config: str, light: bool = False) -> Callable[[str], str]:
    """A function that converts a text. Raises UserError if the configuration is not in CONFIGS.

    `light` leaves out what only rare ideographs need (compatibility ideographs, results beyond the basic block): OpenCC
    looks each character up in every dictionary, and these cost a fifth of the time.
    """
    import opencc

    if config not in CONFIGS:
        raise UserError(f"--config {config} is not one of {', '.join(CONFIGS)}{nearest(config, CONFIGS)}")
    folder = Path(opencc.__file__).parent / "clib" / "share" / "opencc"
    if not light or not (folder / f"{config}.json").is_file():
        return opencc.OpenCC(config).convert
    settings = json.loads((folder / f"{config}.json").read_text())
    settings.pop("normalization", None)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{config}.json"
        path.write_text(json.dumps(_without_rare(settings, folder)))
        return opencc.OpenCC(str(path)).convert


def _without_rare(settings: Any, folder: Path) -> Any:
    """A configuration with absolute paths of its dictionaries, without those in RARE."""
    if isinstance(settings, list):
        kept = [one for one in settings if not (isinstance(one, dict) and one.get("file") in RARE)]
        return [_without_rare(one, folder) for one in kept]
    if isinstance(settings, dict):
        return {
            key: str(folder / value) if key == "file" else _without_rare(value, folder)
            for key, value in settings.items()
        }
    return settings


@cache
def converted_characters(config: str, light: bool = False) -> np.ndarray:
    """What OpenCC makes of every code point that stands alone; shape [TOP + 1], uint32. Also for config `s2t`."""
    import opencc

    convert = opencc.OpenCC(config).convert if config not in CONFIGS else converter(config, light)
    table: np.ndarray = np.arange(TOP + 1, dtype=np.uint32)
    codes = [code for first, stop in IDEOGRAPHS for code in range(first, stop)]
    table[codes] = list(map(ord, convert("\n".join(map(chr, codes))).split("\n")))
    return table


def convert_many(texts: list[str], config: str, light: bool = False) -> list[str]:
    """OpenCC's conversion of each text, in one call: its cost per call outweighs that per character."""
    convert = converter(config, light)
    converted = convert(SEPARATOR.join(texts)).split(SEPARATOR)
    if len(converted) != len(texts):  # a text contains the separator or NUL: convert one by one, split at both
        return [re.sub("[^\x00\x1e]+", lambda match: convert(match[0]), text) for text in texts]
    return converted

"""The tokenizer gate: check that every tool that will read the folder gives the same ids for difficult strings.

    myllm tokenizer-gate --tokenizer tokenizer            # compare, and write tokenizer/probe.json
    myllm tokenizer-gate --tokenizer tokenizer --reader transformers       # print the ids of one tool

Each environment's tools run in one process of that environment. Tools that will read the tokenizer from a model folder
get a copy with a `config.json`, because transformers 5 chooses the tokenizer class by the model's type. This file needs
only the standard library, so that every environment can run it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.errors import UserError, nearest
from artifacts.files import read_json, write_json
from artifacts.layout import ENVIRONMENTS, REPOSITORY

EVIDENCE = "probe.json"

PROBES = (
    "床前明月光，疑是地上霜。",
    "Hello, world! It's 2024-01-01 12:30.",
    "全角ＡＢＣ，半角abc；𠮷野家、㐀㐁。",
    "é é ﬁ ½ ①  \t\n\r\n　全角空格",
    "<|im_start|>user\n你好<|im_end|>\n<|endoftext|>",
    "🙂👩‍👩‍👧 emoji\u200b零宽",
    "",
    " ",
    "\n\n\n",
    "  前后有空格  ",
    "e\u0301 與 é，か\u3099 與 が，한글",  # composed and decomposed
    "<|endoftext|><|endoftext|>",
    "你<|im_end|>好 <|im_start|> 空格",
    "<|endof <|im_start| |im_end|>",  # not special tokens
    "▁literal▁metaspace <0xE4> <unk> <s></s>",
    "1234567890 ３．１４ 一二三 ⅣⅤ 1,000,000",
    "\ufeffBOM，\x00NUL，\x7f，\ue000私用，\U0010ffff",
    "שלום עליכם العربية हिन्दी ไทย",
    "def f(x):\n\treturn  x ** 2   # 注释\r\n\r\n",
    "https://example.org/路径?q=%E4%BD%A0#锚",
    "I'm you'RE we'Ll it'S",
    "臺灣繁體：計算機、軟體、著、麼 简体：计算机、软件、着、么",
    "……——「『』」《〈〉》【】〔〕·～￥％",
    "天" * 300,
    "".join(chr(0x4E00 + 37 * i) for i in range(500)),
    "a" * 300 + " " * 50 + "\n" * 20,
)


def with_tokenizers(folder: Path) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(probe).ids for probe in PROBES]


def with_transformers(folder: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(probe)["input_ids"] for probe in PROBES]


def with_megatron(folder: Path) -> list[list[int]]:
    import torch

    if not torch.cuda.is_available():
        from artifacts.megatron_on_cpu import patch_torch

        patch_torch()
    from megatron.core.tokenizers import MegatronTokenizer

    tokenizer = MegatronTokenizer.from_pretrained(tokenizer_path=str(folder), metadata_path={"library": "huggingface"})
    return [tokenizer.tokenize(probe) for probe in PROBES]


def with_llamafactory(folder: Path) -> list[list[int]]:
    from llamafactory.hparams import ModelArguments
    from llamafactory.model import load_tokenizer

    tokenizer = load_tokenizer(ModelArguments(model_name_or_path=str(folder)))["tokenizer"]
    return [tokenizer.encode(probe, add_special_tokens=False) for probe in PROBES]


def with_vllm(folder: Path) -> list[list[int]]:
    from vllm.tokenizers import get_tokenizer

    tokenizer = get_tokenizer(str(folder))
    return [tokenizer.encode(probe) for probe in PROBES]


READERS: dict[str, Callable[[Path], list[list[int]]]] = {
    "tokenizers": with_tokenizers,
    "transformers": with_transformers,
    "megatron": with_megatron,
    "llamafactory": with_llamafactory,
    "vllm": with_vllm,
}
AS_MODEL = "@model"  # suffix of a reader's name: it reads the model folder
# The readers of each environment, in the order in which one process runs them. Megatron patches torch, so it is last.
PLACES = {
    "train": ("transformers", "transformers@model", "llamafactory@model", "megatron"),
    "serve": ("transformers", "transformers@model", "vllm@model"),
}


def model_folder(tokenizer: Path, model_type: str, folder: Path) -> Path:
    """Copy a tokenizer's files to a new folder with a `config.json` that states the model type. Returns the folder."""
    target = folder / "model"
    shutil.copytree(tokenizer, target)
    write_json(target / "config.json", {"model_type": model_type, "architectures": [], "torch_dtype": "float32"})
    return target


def ids_of(readers: list[str], tokenizer: Path, model: Path | None) -> None:
    """Print a line of JSON for each reader, {"reader", "ids"} or {"reader", "error"}; stop at the first error."""
    for name in readers:
        reader, at, _ = name.partition("@")
        try:
            found: dict[str, Any] = {"ids": READERS[reader](model if at and model else tokenizer)}
        except Exception as error:  # any exception means that the tool cannot load the tokenizer
            found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps({"reader": name, **found}), flush=True)
        if "error" in found:
            return


def ask(readers: tuple[str, ...], python: Path, tokenizer: Path, model: Path) -> dict[str, list[list[int]]]:
    """The ids from each reader of one environment. Raises UserError if one cannot load the tokenizer."""
    command = [str(python), "-m", "preprocess.tokenizer.probe", "--tokenizer", str(tokenizer), "--model", str(model)]
    command += [word for reader in readers for word in ("--reader", reader)]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DISABLE_VERSION_CHECK": "1",
             "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    try:
        result = subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=600
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"no ids after 10 minutes: run `{' '.join(command)}` to see why") from None
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"reader": ')]
    found = {row["reader"]: row.get("ids") for row in rows}
    for reader in readers:
        if found.get(reader) is None:
            told = next((row["error"] for row in rows if row["reader"] == reader), None)
            words = told or (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"{reader} cannot load the tokenizer {tokenizer} ({words}): run `{' '.join(command)}` to see why"
            )
    return found


def round_trips(folder: Path) -> None:
    """Raise UserError if encoding and decoding a probe changes it, apart from the tokenizer's own normalisation.

    That is NFC in qwen2 style. In llama2 style a literal U+2581 becomes a space, as in SentencePiece.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    normal = tokenizer.normalizer.normalize_str if tokenizer.normalizer is not None else str
    for probe in PROBES:
        back = tokenizer.decode(tokenizer.encode(probe, add_special_tokens=False).ids, skip_special_tokens=False)
        if normal(back) != normal(probe):
            raise UserError(f"{folder}: {probe!r} is decoded as {back!r}: the tokenizer loses text")


def same_ids(folder: Path, name: str, expected: list[list[int]], found: list[list[int]]) -> None:
    for probe, right, got in zip(PROBES, expected, found, strict=True):
        if right != got:
            raise UserError(f"{folder}: {name} encodes {probe[:60]!r} as {got[:20]}, tokenizers as {right[:20]}")


def gate(folder: Path, model_type: str, environments: tuple[str, ...] = ("train", "serve")) -> dict[str, Any]:
    """Compare the ids of every tool whose environment exists with those of `tokenizers`, and write `probe.json`.

    Returns the content of `probe.json`; tools of environments that do not exist are listed under `not_checked`.

    Raises:
        UserError: a tool gives different ids; names the tool, its environment and the first string that differs.
    """
    round_trips(folder)
    expected = with_tokenizers(folder)
    agreed, missing = ["tokenizers"], []

    def title(reader: str, environment: str) -> str:
        name = f"{reader.removesuffix(AS_MODEL)} in {ENVIRONMENTS[environment]}"
        return name + (f", as a {model_type} model" if reader.endswith(AS_MODEL) else "")

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as pool:
        model = model_folder(folder, model_type, Path(scratch))
        asked: dict[str, Future[dict[str, list[list[int]]]]] = {}
        for environment, readers in PLACES.items():
            python = REPOSITORY / ENVIRONMENTS[environment] / "bin" / "python"
            if environment in environments and python.exists():
                asked[environment] = pool.submit(ask, readers, python, folder, model)
            else:
                missing += [title(reader, environment) for reader in readers]
        for environment, answers in asked.items():
            for reader, ids in answers.result().items():
                same_ids(folder, title(reader, environment), expected, ids)
                agreed.append(title(reader, environment))
                print(f"{agreed[-1]}: the ids of all {len(PROBES)} probes are equal", flush=True)
    for name in missing:
        print(f"not checked: {name} (make the environment with `make envs`)", flush=True)
    evidence = {"agreed": agreed, "not_checked": missing,
                "probes": [{"text": text, "ids": ids} for text, ids in zip(PROBES, expected)]}  # fmt: skip
    write_json(folder / EVIDENCE, evidence)
    return evidence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="model folder for readers with `@model` (default: --tokenizer)")
    parser.add_argument(
        "--reader", action="append", metavar="NAME", help=f"print the ids of one of {', '.join(READERS)}; repeatable"
    )
    parser.add_argument("--model-type", help="model type in transformers (default: from the tokenizer's class)")


def run(arguments: argparse.Namespace) -> None:
    if arguments.reader:
        for name in arguments.reader:
            if (reader := name.removesuffix(AS_MODEL)) not in READERS:
                raise UserError(f"--reader {name} is unknown{nearest(reader, READERS)}: use {', '.join(READERS)}")
        return ids_of(arguments.reader, arguments.tokenizer, arguments.model)
    qwen2 = read_json(arguments.tokenizer / "tokenizer_config.json").get("tokenizer_class") == "Qwen2Tokenizer"
    gate(arguments.tokenizer, arguments.model_type or ("qwen2" if qwen2 else "llama"))


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    main(__name__)

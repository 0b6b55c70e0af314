"""The gate of a tokenizer: every tool that will read the folder gives the same ids for strings that often break.

    myllm tokenizer-gate --tokenizer tokenizer            # compare, and write tokenizer/probe.json
    myllm tokenizer-gate --tokenizer tokenizer --reader transformers --model-type qwen2 # ids of one

A reader is asked in a process of its own, in the environment where it will be used. Tools that only ever see a model's
folder are shown one: a copy with a `config.json`, because transformers 5 chooses the tokenizer's class by the model's
type. This file needs the standard library only, so that every environment can run it.
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

from artifacts.errors import UserError, run_main
from artifacts.files import read_json, write_json
from artifacts.layout import ENVIRONMENTS, REPOSITORY

EVIDENCE = "probe.json"
AT_ONCE = 2  # readers; each imports torch

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
    "<|endof <|im_start| |im_end|>",  # no special token
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
# which reader in which environment, and whether it is shown a model's folder
PLACES = (
    ("transformers", "train", False),
    ("transformers", "train", True),
    ("megatron", "train", False),
    ("llamafactory", "train", True),
    ("transformers", "serve", False),
    ("transformers", "serve", True),
    ("vllm", "serve", True),
)


def model_folder(tokenizer: Path, model_type: str, folder: Path) -> Path:
    """A copy of a tokenizer's files beside a `config.json` that names the model's type."""
    target = folder / "model"
    shutil.copytree(tokenizer, target)
    write_json(target / "config.json", {"model_type": model_type, "architectures": [], "torch_dtype": "float32"})
    return target


def ask(reader: str, python: Path, folder: Path) -> list[list[int]]:
    """Ids as one reader gives them; raises UserError with its last words when it fails."""
    command = [str(python), "-m", "preprocess.tokenizer.probe", "--tokenizer", str(folder), "--reader", reader]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DISABLE_VERSION_CHECK": "1",
             "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    result = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=600
    )
    if result.returncode != 0:
        words = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{reader} cannot load the tokenizer {folder} ({words}): run `{' '.join(command)}` to see why")
    return json.loads(result.stdout.splitlines()[-1])


def round_trips(folder: Path) -> None:
    """Raise UserError when decoding does not give back a probe, up to the tokenizer's own normalisation.

    That is NFC in qwen2 style; in llama2 style a literal U+2581 is read as a space, as SentencePiece does.
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
            raise UserError(f"{folder}: {name} reads {probe[:60]!r} as {got[:20]}, tokenizers as {right[:20]}")


def gate(folder: Path, model_type: str, environments: tuple[str, ...] = ("train", "serve")) -> dict[str, Any]:
    """Ask every reader whose environment exists, compare with `tokenizers`, write `probe.json` into the folder.

    Raises UserError naming reader, environment and string on the first difference. An environment that was not made
    is told in the evidence under `not_checked`.
    """
    round_trips(folder)
    expected = with_tokenizers(folder)
    agreed, missing = ["tokenizers"], []
    with tempfile.TemporaryDirectory() as scratch:
        model = model_folder(folder, model_type, Path(scratch))
        asked: list[tuple[str, Future[list[list[int]]]]] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for reader, environment, as_model in PLACES:
                python = REPOSITORY / ENVIRONMENTS[environment] / "bin" / "python"
                name = f"{reader} in {ENVIRONMENTS[environment]}" + (f", as a {model_type} model" if as_model else "")
                if environment in environments and python.exists():
                    asked.append((name, pool.submit(ask, reader, python, model if as_model else folder)))
                else:
                    missing.append(name)
            try:
                for name, answer in asked:
                    same_ids(folder, name, expected, answer.result())
                    agreed.append(name)
                    print(f"{name}: the ids of all {len(PROBES)} probes are equal", flush=True)
            finally:
                pool.shutdown(cancel_futures=True)
    for name in missing:
        print(f"not checked: {name} (make the environment with `make envs`)", flush=True)
    evidence = {"agreed": agreed, "not_checked": missing,
                "probes": [{"text": text, "ids": ids} for text, ids in zip(PROBES, expected)]}  # fmt: skip
    write_json(folder / EVIDENCE, evidence)
    return evidence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--reader", choices=READERS, help="print the ids that this one gives, in this environment")
    parser.add_argument("--model-type", help="what transformers calls the model (default: by the tokenizer's class)")
    arguments = parser.parse_args()
    if arguments.reader:
        print(json.dumps(READERS[arguments.reader](arguments.tokenizer)))
        return
    qwen2 = read_json(arguments.tokenizer / "tokenizer_config.json").get("tokenizer_class") == "Qwen2Tokenizer"
    gate(arguments.tokenizer, arguments.model_type or ("qwen2" if qwen2 else "llama"))


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    run_main(main)

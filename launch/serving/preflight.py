"""Check a model folder before a server starts: files, weights, tokenizer, chat template, stop tokens.

The engines report such faults late or not at all. Without a tokenizer, vLLM starts and then refuses every request; a
path that does not exist gives an HFValidationError after 13 s; truncated weights end in a traceback of a worker. Here
each fault is one line, within a second, before anything heavy is imported. Used by `launch.serving.serve`,
`launch.serving.gate` and the chat commands.

    from launch.serving.preflight import check_model
    config = check_model(Path("runs/poetry-tiny/models/dpo"))
"""

from __future__ import annotations

import ast
import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, nearest
from artifacts.files import read_json
from artifacts.layout import ENVIRONMENTS, REPOSITORY
from launch.serving import engines

AGAIN = "export the model again"
EMBEDDING_NAMES = ("model.embed_tokens.weight", "transformer.wte.weight")
WEIGHT_TYPES = {"F32": 4, "BF16": 2, "F16": 2}  # safetensors' name: bytes per number
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # a tag of transformers around the assistant's text
LAYER = re.compile(r"\.(?:layers|h)\.(\d+)\.")


@dataclass(frozen=True)
class Weights:
    """From the safetensors headers of a folder: shape by name, types of the numbers, number of numbers."""

    shapes: dict[str, list[int]]
    types: set[str]
    numbers: int


def read_weights(folder: Path) -> Weights:
    """Read the headers of a folder's safetensors files, without the weights. Raises UserError if a file is truncated.

    Format: 8 bytes, little-endian, with the length of the header; the header in JSON; the data at the offsets that the
    header gives (https://github.com/huggingface/safetensors#format).
    """
    shapes: dict[str, list[int]] = {}
    types: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            start = stream.read(8)
            if start == b"version ":
                raise UserError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")
            try:
                size = struct.unpack("<Q", start)[0]
                header = json.loads(stream.read(size))
            except (struct.error, ValueError, OverflowError, MemoryError):
                raise UserError(f"{file} is not a complete safetensors file: {AGAIN}") from None
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        if file.stat().st_size != end:
            raise UserError(f"{file} has {file.stat().st_size:,} bytes, but its header says {end:,}: {AGAIN}")
        shapes.update({name: entry["shape"] for name, entry in tensors.items()})
        types.update(entry["dtype"] for entry in tensors.values())
    return Weights(shapes, types, sum(math.prod(shape) for shape in shapes.values()))


def check_folder(folder: Path) -> None:
    if not folder.is_dir():
        hint = "hub names are not supported: download it first with `hf download NAME --local-dir FOLDER`"
        mend = "run the stage that makes it first" if folder.parent.is_dir() else hint
        raise UserError(f"the model folder {folder} does not exist: {mend}")
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise UserError(
            f"{folder} is an adapter, not a model: merge it first with `myllm posttrain merge --model BASE "
            f"--adapter {folder} --output FOLDER`"
        )


def check_weights(folder: Path, config: dict[str, Any]) -> Weights:
    """Check that the weights are complete (every shard, every layer) and of a type that both engines read."""
    weights = read_weights(folder)
    if not weights.shapes:
        pickled = next(folder.glob("*.bin"), None)
        mend = f"{pickled.name} is a pickle, save it as safetensors" if pickled else AGAIN
        raise UserError(f"{folder} has no *.safetensors weights: {mend}")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        for name, file in read_json(index)["weight_map"].items():
            if name not in weights.shapes:
                raise UserError(f"{index} names {file} for {name}, which is missing: {AGAIN}")
    unknown = weights.types - set(WEIGHT_TYPES)
    if unknown and "quantization_config" not in config:
        raise UserError(
            f"{folder}: weights of type {', '.join(sorted(unknown))} without a quantization_config in config.json: "
            "export them as float32 or bfloat16"
        )
    layers = {int(found[1]) for name in weights.shapes if (found := LAYER.search(name))}
    wanted = config.get("num_hidden_layers")
    if isinstance(wanted, int) and layers != set(range(wanted)):
        raise UserError(f"{folder}: config.json says {wanted} layers, but the weights have {len(layers)}: {AGAIN}")
    return weights


def check_tokenizer(folder: Path, config: dict[str, Any], weights: Weights, engine: str) -> dict[str, int]:
    """Check that tokenizer.json fits the embedding; returns the ids of its added tokens by text."""
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder / 'tokenizer.json'} does not exist, so every request would fail: {AGAIN}")
    rows = next((weights.shapes[name][0] for name in EMBEDDING_NAMES if name in weights.shapes), None)
    if rows is None:
        raise UserError(f"the weights in {folder} have no embedding ({' or '.join(EMBEDDING_NAMES)}): {AGAIN}")
    tokenizer = read_json(folder / "tokenizer.json")
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    vocabulary = tokenizer["model"]["vocab"]
    ids = [*(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))), *added.values()]
    if max(ids) >= rows or config.get("vocab_size") != rows:
        raise UserError(
            f"{folder}: tokenizer.json has {max(ids) + 1} tokens, config.json says {config.get('vocab_size')} and the "
            f"embedding has {rows} rows: the files belong to different models; {AGAIN}"
        )
    check_pattern(folder, config, tokenizer, engine)
    return added


def check_pattern(folder: Path, config: dict[str, Any], tokenizer: dict[str, Any], engine: str) -> None:
    """Check the normalizer and pattern of a qwen2 tokenizer.

    For `model_type` qwen2, transformers 5 uses Qwen2's own normalizer and pattern and ignores those of tokenizer.json.
    Another tokenizer would then be served with other ids than in training. The pattern is read from the engine's own
    source, `PRETOKENIZE_REGEX` of transformers/models/qwen2/tokenization_qwen2.py.
    """
    source = environment_file(engines.engine(engine).ENVIRONMENT, "transformers/models/qwen2/tokenization_qwen2.py")
    if config.get("model_type") != "qwen2" or source is None:
        return
    pattern = ast.literal_eval(assigned(source, "PRETOKENIZE_REGEX"))
    own = json.dumps(tokenizer.get("pre_tokenizer"), ensure_ascii=False)
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    if json.dumps(pattern, ensure_ascii=False) not in own or normalizer != "NFC":
        raise UserError(
            f"{folder / 'tokenizer.json'} does not split text as Qwen2 does (NFC and its pattern), but transformers 5 "
            "would: train the tokenizer with `myllm tokenizer`, or set model_type llama in config.json"
        )


def check_template(folder: Path) -> None:
    """Check that there is a chat template, that it is valid Jinja, and that it writes the user's text."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    file, settings_file = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.exists() else {}
    text = file.read_text(encoding="utf-8") if file.exists() else settings.get("chat_template")
    if not text:
        raise UserError(f"{folder} has no chat_template.jinja, so every chat would fail: {AGAIN}")
    if not isinstance(text, str):
        return  # several named templates: the engine chooses one
    where = file if file.exists() else settings_file
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.policies["json.dumps_kwargs"] = {"ensure_ascii": False}

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: form
    tokens = {name: settings.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    names = {name: value["content"] if isinstance(value, dict) else value for name, value in tokens.items() if value}
    word = "床前明月光"
    try:
        rendered = sandbox.from_string(GENERATION.sub("", text)).render(
            messages=[{"role": "user", "content": word}], add_generation_prompt=True, **names
        )
    except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{where}: the chat template fails ({error}): correct it or {AGAIN}") from None
    if word not in rendered:
        raise UserError(f"{where}: the chat template drops the user's text: correct it or {AGAIN}")


def check_stops(folder: Path, config: dict[str, Any], added: dict[str, int]) -> None:
    """Check that generation stops at the end token of training; without generation_config.json vLLM did not."""
    file = folder / "generation_config.json"
    stops = read_json(file).get("eos_token_id") if file.exists() else None
    if isinstance(stops, int):
        stops = [stops]
    if not stops:
        raise UserError(f"{file} lacks eos_token_id, so a reply would not stop where training stopped: {AGAIN}")
    if wrong := [stop for stop in stops if not 0 <= stop < config["vocab_size"]]:
        raise UserError(f"{file}: eos_token_id {wrong[0]} is not in the vocabulary of {config['vocab_size']}: {AGAIN}")
    settings = folder / "tokenizer_config.json"
    end = read_json(settings).get("eos_token") if settings.exists() else None
    end = end.get("content") if isinstance(end, dict) else end
    if end in added and added[end] not in stops:
        raise UserError(
            f"{file}: eos_token_id {stops} lacks {added[end]}, the {end} that {settings.name} ends a turn with, so a "
            f"reply would not stop: {AGAIN}"
        )


def check_model(folder: Path, cpu: bool = True, engine: str = "vllm") -> dict[str, Any]:
    """Check everything that a server needs in a model folder; returns config.json.

    Raises:
        UserError: the first fault; the message names the file and what to do.
    """
    check_folder(folder)
    config: dict[str, Any] = read_json(folder / "config.json")
    weights = check_weights(folder, config)
    added = check_tokenizer(folder, config, weights, engine)
    check_template(folder)
    check_stops(folder, config, added)
    rope = config.get("rope_parameters") or {}
    if {"rope_theta"} <= set(config) & set(rope) and config["rope_theta"] != rope["rope_theta"]:
        raise UserError(
            f"{folder / 'config.json'}: rope_theta is {config['rope_theta']} and {rope['rope_theta']} under "
            f"rope_parameters; transformers 4 reads the first, transformers 5 the second: {AGAIN}"
        )
    check_architecture(folder, config, engine)
    sizes = engines.engine(engine).CPU_HEAD_SIZES if cpu else ()
    if sizes and head_size(config) not in sizes:
        raise UserError(
            f"{folder / 'config.json'}: {engine} has no CPU kernel for attention heads of size {head_size(config)}: "
            f"choose one of {', '.join(map(str, sizes))} in the model recipe (hidden-size / num-attention-heads)"
        )
    return config


def check_architecture(folder: Path, config: dict[str, Any], engine: str) -> None:
    """Check that the engine's own table lists the architecture."""
    name = next(iter(config.get("architectures") or []), None)
    served = engines.engine(engine)
    file, table = served.ARCHITECTURES
    source = environment_file(served.ENVIRONMENT, file)
    if source is None:
        return
    tree = assigned(source, table)
    keys = [str(key.value) for key in tree.keys if isinstance(key, ast.Constant)] if isinstance(tree, ast.Dict) else []
    if isinstance(tree, ast.Call):
        keys = [keyword.arg for keyword in tree.keywords if keyword.arg]
    if name not in keys:
        raise UserError(
            f"{folder / 'config.json'}: {engine} does not support the architecture {name}{nearest(str(name), keys)}"
        )


def head_size(config: dict[str, Any]) -> int:
    heads = config.get("num_attention_heads") or 1
    return int(config.get("head_dim") or config.get("hidden_size", 0) // heads)


def environment_file(name: str, file: str) -> Path | None:
    """A source file of a package in an environment; None if the environment is missing, which the start reports."""
    folder = REPOSITORY / ENVIRONMENTS[name]
    if not folder.exists():
        return None
    found = next((folder / "lib").glob(f"python3*/site-packages/{file}"), None)
    if found is None:
        raise UserError(f"the environment {folder.name} lacks {file}: remove it and run `make env-{name}`")
    return found


def assigned(source: Path, name: str) -> Any:
    """The value assigned to a top-level name of a module, as a syntax tree; an import would take ten seconds."""
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and target.id == name:
            return statement.value  # type: ignore[attr-defined]
    raise UserError(f"{source} does not define {name}: the package has another version than in the lock file")

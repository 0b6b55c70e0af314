"""Check the chat models that post-training reads, and write its models for transformers 4 and 5 and for vLLM."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json, write_json

END_OF_TURN = "<|im_end|>"
VALUE_HEAD = "value_head.safetensors"
CLASSIFIER = "ForSequenceClassification"
END_OF_TEXT = "<|endoftext|>"
# Tokenizer files of a Hugging Face folder; they are copied unchanged.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def check_model(model: Path) -> dict[str, int]:
    """Ids of <|im_end|> and <|endoftext|>. Raises UserError if ChatML cannot be trained on the model in this folder."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (model / name).is_file():
            raise UserError(f"{model} has no {name}: give a Hugging Face model folder with --model")
    if not any(model.glob("*.safetensors")):
        raise UserError(f"{model} has no .safetensors weights: give a Hugging Face model folder with --model")
    config = read_json(model / "config.json")
    added = {token["content"]: token["id"] for token in read_json(model / "tokenizer.json").get("added_tokens", [])}
    for token in (END_OF_TEXT, "<|im_start|>", END_OF_TURN):
        if token not in added:
            raise UserError(
                f"{model / 'tokenizer.json'} lacks the token {token}: add it to the tokenizer before pretraining"
            )
        if added[token] >= config["vocab_size"]:
            raise UserError(f"{model}: {token} has id {added[token]}, but the model has {config['vocab_size']} rows")
    return {token: added[token] for token in (END_OF_TURN, END_OF_TEXT)}


def check_adapter(adapter: Path, option: str = "--adapter") -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise UserError(f"{adapter} has no {name}: give the output folder of a LoRA recipe with {option}")


def check_reward_model(folder: Path, as_adapter: bool) -> None:
    """Raise UserError if the folder is not a reward model: a merged one, or an adapter with its value head."""
    if as_adapter:
        check_adapter(folder, "--reward-model")
        if not (folder / VALUE_HEAD).is_file():
            raise UserError(f"{folder} has no {VALUE_HEAD}: give the output of recipe `reward` with --reward-model")
        return
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not any(name.endswith(CLASSIFIER) for name in config.get("architectures", [])):
        raise UserError(
            f"{folder} is not a {CLASSIFIER}: --reward-model needs the merged output of recipe `reward`. Run "
            "`myllm posttrain merge --model CHAT --adapter REWARD --output-folder DIR`"
        )


def chat_config(config: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """Change a model's config.json to that of a chat model.

    `rope_theta` is written twice: transformers 4 reads the top level (and silently uses 10000 without it), transformers
    5 and vLLM read `rope_parameters`. Generation ends at the end of a turn or of the text.
    """
    config = dict(config)
    rope = dict(config.get("rope_parameters") or {})
    theta = config.get("rope_theta", rope.get("rope_theta", 10000.0))
    config["rope_theta"] = theta
    config["rope_parameters"] = {"rope_type": "default", **rope, "rope_theta": theta}
    config["eos_token_id"] = [ids[END_OF_TURN], ids[END_OF_TEXT]]
    config["pad_token_id"] = ids[END_OF_TEXT]
    return config


def check_weights(folder: Path, config: dict[str, Any]) -> None:
    """Raise UserError if the embedding does not have the number of rows that config.json says."""
    from safetensors import safe_open

    rows = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():
                if name.endswith("embed_tokens.weight"):
                    rows = tensors.get_slice(name).get_shape()[0]
    if rows != config["vocab_size"]:
        raise UserError(f"{folder}: the embedding has {rows} rows, but config.json says {config['vocab_size']}")


def weights_type(folder: Path) -> str:
    """torch's name of the dtype of a folder's weights, e.g. `float32`."""
    from safetensors import safe_open

    with safe_open(next(iter(sorted(folder.glob("*.safetensors")))), framework="numpy") as tensors:
        kind = tensors.get_slice(next(iter(tensors.keys()))).get_dtype()
    return {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}.get(kind, kind)


def float32_view(origin: Path, folder: Path) -> Path:
    """Make `folder` a view of `origin` that loads in float32: links to its files and another config.json; returns it.

    LLaMA-Factory merges an adapter in the dtype that config.json names. In bfloat16 it would round every weight, and
    the rounding error of the logits would hide a wrong merge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = read_json(origin / "config.json")
    config["dtype" if "dtype" in config else "torch_dtype"] = "float32"
    for path in origin.iterdir():
        if path.name != "config.json" and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    write_json(folder / "config.json", config)
    return folder


def cast_weights(folder: Path, dtype: str) -> None:
    """Convert the weights of a model folder to `dtype` (torch's name), one file at a time."""
    import torch
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    config = read_json(folder / "config.json")
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    write_json(folder / "config.json", config)


def fill_chat_model(origin: Path, weights: Path, output: Path, ids: dict[str, int]) -> None:
    """Fill `output` with the weights of `weights` and all other files of `origin`, the model that was trained.

    Config and tokenizer come from the origin, because LLaMA-Factory rewrites both when it saves. In the tokenizer, only
    the name of the end token changes.
    """
    config = chat_config(read_json(origin / "config.json"), ids)
    check_weights(weights, config)
    config["dtype" if "dtype" in config else "torch_dtype"] = weights_type(weights)
    write_json(output / "config.json", config)
    generation = read_json(origin / "generation_config.json") if (origin / "generation_config.json").exists() else {}
    generation |= {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    write_json(output / "generation_config.json", generation)
    for name in TOKENIZER_FILES:
        if (origin / name).exists():
            shutil.copyfile(origin / name, output / name)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if not (output / name).exists():
            continue
        tokens = read_json(output / name)
        end = tokens.get("eos_token")
        tokens["eos_token"] = {**end, "content": END_OF_TURN} if isinstance(end, dict) else END_OF_TURN
        write_json(output / name, tokens)
    for file in sorted([*weights.glob("*.safetensors"), *weights.glob("*.safetensors.index.json")]):
        shutil.copyfile(file, output / file.name)


def fill_adapter(raw: Path, output: Path, value_head: bool) -> None:
    """Copy an adapter and, for a reward model, its value head. PPO's value head, the critic, is not kept."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(raw / name, output / name)
    if value_head:
        shutil.copyfile(raw / VALUE_HEAD, output / VALUE_HEAD)


def value_head(adapter: Path) -> tuple[Any, Any]:
    """Weight [1, hidden] and bias [1] of a reward model's head, saved by TRL's `AutoModelForCausalLMWithValueHead`."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / VALUE_HEAD)
    return tensors["v_head.summary.weight"], tensors["v_head.summary.bias"]


def fill_reward_model(merged: Path, adapter: Path, output: Path) -> None:
    """Write a merged causal model and a value head as a sequence classifier with one label, for TRL and transformers.

    The reward is read at the last token, as in training. The classifier has no bias, so its rewards differ from the
    adapter's by a constant.
    """
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = {}
    files = sorted(merged.glob("*.safetensors"))
    for file in files:
        tensors |= {name: part for name, part in load_file(file).items() if name != "lm_head.weight"}
    weight, _ = value_head(adapter)
    tensors["score.weight"] = weight.to(next(iter(tensors.values())).dtype)
    config = read_json(merged / "config.json")
    config["architectures"] = [name.replace("ForCausalLM", CLASSIFIER) for name in config["architectures"]]
    config |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    if output == merged:
        for file in [*files, *merged.glob("*.safetensors.index.json"), merged / "generation_config.json"]:
            file.unlink(missing_ok=True)
    write_json(output / "config.json", config)
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})

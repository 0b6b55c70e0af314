"""The chat models that post-training reads and hands on: whole, and right for transformers 4 and 5 and for vLLM."""

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
# Files of a Hugging Face folder that belong to the tokenizer, copied as they are.
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
    """Ids of <|im_end|> and <|endoftext|>; raises UserError when the folder is not a model that ChatML can train."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (model / name).is_file():
            raise UserError(f"{model} has no {name}: --model wants a Hugging Face model folder")
    if not any(model.glob("*.safetensors")):
        raise UserError(f"{model} has no .safetensors weights: --model wants a Hugging Face model folder")
    config = read_json(model / "config.json")
    added = {token["content"]: token["id"] for token in read_json(model / "tokenizer.json").get("added_tokens", [])}
    for token in (END_OF_TEXT, "<|im_start|>", END_OF_TURN):
        if token not in added:
            raise UserError(f"{model / 'tokenizer.json'} lacks {token}: it must be there before pretraining")
        if added[token] >= config["vocab_size"]:
            raise UserError(f"{model}: {token} has id {added[token]}, but the model has {config['vocab_size']} rows")
    return {token: added[token] for token in (END_OF_TURN, END_OF_TEXT)}


def check_adapter(adapter: Path, option: str = "--adapter") -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise UserError(f"{adapter} has no {name}: {option} wants the output folder of a LoRA recipe")


def check_reward_model(folder: Path, as_adapter: bool) -> None:
    """UserError unless the folder is a reward model: a merged one, or an adapter with its value head."""
    if as_adapter:
        check_adapter(folder, "--reward-model")
        if not (folder / VALUE_HEAD).is_file():
            raise UserError(f"{folder} has no {VALUE_HEAD}: --reward-model wants the output folder of recipe `reward`")
        return
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not any(name.endswith(CLASSIFIER) for name in config.get("architectures", [])):
        raise UserError(
            f"{folder} is no {CLASSIFIER}: --reward-model wants recipe `reward` merged: "
            "myllm posttrain merge --model CHAT --adapter REWARD --output-folder DIR"
        )


def chat_config(config: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """The model's config.json for a chat model.

    `rope_theta` stands twice: transformers 4 reads the top level (and silently takes 10000 without it), transformers 5
    and vLLM read `rope_parameters`. Generation ends at the end of a turn or of the text.
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
    """Raises UserError when the embedding is not as large as config.json says."""
    from safetensors import safe_open

    rows = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():
                if name.endswith("embed_tokens.weight"):
                    rows = tensors.get_slice(name).get_shape()[0]
    if rows != config["vocab_size"]:
        raise UserError(f"{folder}: the embedding has {rows} rows, config.json says {config['vocab_size']}")


def weights_type(folder: Path) -> str:
    """torch's name of the type that a folder's weights are stored in, e.g. `float32`."""
    from safetensors import safe_open

    with safe_open(next(iter(sorted(folder.glob("*.safetensors")))), framework="numpy") as tensors:
        kind = tensors.get_slice(next(iter(tensors.keys()))).get_dtype()
    return {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}.get(kind, kind)


def float32_view(origin: Path, folder: Path) -> Path:
    """A folder that loads as `origin` in float32: links to its files and a config.json that says so; returns it.

    LLaMA-Factory merges an adapter in the type that config.json names. In bfloat16 it would round every weight, and the
    merged logits would be off by more than a merge that went wrong could be told from.
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
    """Rewrite a model folder's weights as `dtype` (torch's name), a file at a time."""
    import torch
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    config = read_json(folder / "config.json")
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    write_json(folder / "config.json", config)


def fill_chat_model(origin: Path, weights: Path, output: Path, ids: dict[str, int]) -> None:
    """Fill `output` with the weights of `weights` and everything else of `origin`, the model that was trained.

    Config and tokenizer come from the origin because LLaMA-Factory rewrites both when it saves; of the tokenizer only
    the name of its end token changes.
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
    """An adapter, and the value head that makes it a reward model; PPO's, its critic, is of no use afterwards."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(raw / name, output / name)
    if value_head:
        shutil.copyfile(raw / VALUE_HEAD, output / VALUE_HEAD)


def value_head(adapter: Path) -> tuple[Any, Any]:
    """Weight [1, hidden] and bias [1] of a reward model's head, as TRL's `AutoModelForCausalLMWithValueHead` has it."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / VALUE_HEAD)
    return tensors["v_head.summary.weight"], tensors["v_head.summary.bias"]


def fill_reward_model(merged: Path, adapter: Path, output: Path) -> None:
    """A merged causal model and a value head as a sequence classifier of one label, which TRL and transformers load.

    Its number is read at the last token, as in training. The head's bias has no place in it: the numbers are those of
    the adapter less a constant.
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

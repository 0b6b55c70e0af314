"""Post-training with LLaMA-Factory: `python -m launch.posttrain RECIPE --model DIR --output DIR ...`

    python -m launch.posttrain sft_full --model runs/r/models/base --data runs/r/posttrain --output runs/r/models/sft
    python -m launch.posttrain dpo_lora --model runs/r/models/sft --data runs/r/posttrain --output runs/r/adapters/dpo
    python -m launch.posttrain merge --model runs/r/models/sft --adapter runs/r/adapters/dpo --output runs/r/models/dpo

RECIPE is a file of `llamafactory_configs/`, whose keys are LLaMA-Factory's own; `--hardware` adds a file of
`llamafactory_configs/hardware/`, `--set key=value` replaces single keys. What LLaMA-Factory leaves to chance is done
around it: the data are checked row by row (it drops bad rows and exits 0), keys are checked before a model loads, a
half-written checkpoint is passed over (it dies of one), a merged model is compared with its adapter, and the output
folder appears only when it is whole and right for transformers 4 and 5 and vLLM.

Beside the output lies `<output>.work/`: the rendered YAML, LLaMA-Factory's own output with its checkpoints, the log.
The same command again resumes from the newest whole checkpoint, or does nothing when the output is finished; anything
else than the same inputs and settings starts afresh. Torch and LLaMA-Factory are not imported before they are needed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, nearest, run_main
from artifacts.files import atomic_folder, read_json, read_yaml, sha256, write_json, write_text
from artifacts.layout import REPOSITORY
from artifacts.stage import report_metrics

RECIPES = REPOSITORY / "llamafactory_configs"
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
# The merged float32 weights, compared with the adapter's in float64 arithmetic: in float32 the order of the sums alone
# moves a logit of 9 by 1.2e-5 (in float64 the same pair differs by 3.7e-6). Both are recorded, the first one decides.
MERGE_PRECISIONS = ("float64", "float32")
MERGE_TOLERANCE = 1e-4  # of a logit, as for conversion; a model merged without its adapter was 8.3 away
CURVE_POINTS = 200
PROVENANCE = "posttrain.json"

# What the launcher decides for each run; a recipe that fixed one of them would not be a recipe.
RUN_KEYS = ("model_name_or_path", "adapter_name_or_path", "dataset_dir", "output_dir", "export_dir", "cache_dir")
EXPORT_GROUPS = ("model_args", "data_args", "finetuning_args", "generating_args")  # `export` knows no training keys

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

# Prompts of the merge check: different lengths, Chinese and ASCII, one turn and two.
CHECK_CONVERSATIONS: tuple[tuple[str, ...], ...] = (
    ("你好",),
    ("请写出下一句：床前明月光",),
    ("Who wrote this? 白日依山尽，黄河入海流。", "王之涣", "再写一首五言绝句。"),
)


@dataclass(frozen=True)
class Job:
    """One command line, resolved: which recipe, on what, to where."""

    recipe: str
    model: Path
    output: Path
    data: Path | None
    adapter: Path | None
    settings: dict[str, Any]  # recipe, hardware file, --set and --seed; no paths of this machine
    exports: bool  # `llamafactory-cli export` instead of `train`

    @property
    def work(self) -> Path:
        return self.output.with_name(self.output.name + ".work")

    @property
    def raw(self) -> Path:
        """LLaMA-Factory's own output folder."""
        return self.work / "output"

    @property
    def yaml(self) -> Path:
        return self.work / f"{self.recipe}.yaml"

    @property
    def gives_adapter(self) -> bool:
        return not self.exports and self.settings.get("finetuning_type") == "lora"

    def datasets(self) -> list[str]:
        names = [self.settings.get(key) for key in ("dataset", "eval_dataset")]
        return [part.strip() for name in names if name for part in str(name).split(",")]


@dataclass
class Dataset:
    """What the check of a data file found."""

    rows: int
    tokens: int = 0  # prompt and answers, special tokens included
    too_long: int = 0  # rows longer than cutoff_len, which LLaMA-Factory will cut
    keys: set[str] = field(default_factory=set)  # hash of each row


# ---------------------------------------------------------------------------------------------------------------------
# Recipe: keys and values


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


# ---------------------------------------------------------------------------------------------------------------------
# Inputs: model, adapter, data


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


def check_adapter(adapter: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise UserError(f"{adapter} has no {name}: --adapter wants the output folder of a LoRA recipe")


def row_fault(row: Any, fields: tuple[str, ...]) -> str | None:
    """What is wrong with a row, in a few words, or None."""
    if not isinstance(row, dict):
        return "is not an object"
    for name in fields:
        if name not in row:
            return f"lacks the field {name!r}"
        if not isinstance(row[name], str):
            return f"has {name!r} that is not text"
        if name != "input" and not row[name].strip():
            return f"has an empty {name!r}"
    if "chosen" in fields and row["chosen"] == row["rejected"]:
        return "has the same answer as 'chosen' and 'rejected'"
    return None


def check_dataset(path: Path, ranking: bool, count_tokens: Callable[[list[str]], list[int]], cutoff: int) -> Dataset:
    """Check a data file row by row (rows count from 1); raises UserError with file, row and fault of the first bad one.

    LLaMA-Factory drops or trains on such rows without a word.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a JSON list of rows")
    if not rows:
        raise UserError(f"{path} has no rows: LLaMA-Factory needs at least one")
    answers = ("chosen", "rejected") if ranking else ("output",)
    fields = ("instruction", "input", *answers)
    found = Dataset(len(rows))
    seen: dict[str, int] = {}
    faults: list[str] = []
    for number, row in enumerate(rows, start=1):
        fault = row_fault(row, fields)
        if fault is None:
            key = hashlib.sha256(json.dumps([row[name] for name in fields]).encode()).hexdigest()
            first = seen.setdefault(key, number)
            fault = f"repeats row {first}" if first != number else None
        if fault:
            faults.append(f"row {number} {fault}")
    if faults:
        more = f" (and {len(faults) - 1} more bad rows)" if len(faults) > 1 else ""
        raise UserError(f"{path}: {faults[0]}{more}: mend the stage that writes this file")
    found.keys = set(seen)
    for answer in answers:
        texts = [
            f"<|im_start|>user\n{row['instruction']}{chr(10) if row['input'] else ''}{row['input']}{END_OF_TURN}\n"
            f"<|im_start|>assistant\n{row[answer]}{END_OF_TURN}\n"
            for row in rows
        ]
        lengths = count_tokens(texts)
        found.tokens += sum(lengths)
        found.too_long += sum(length > cutoff for length in lengths)
    return found


def check_data(job: Job) -> dict[str, Dataset]:
    """Check every data file of the recipe; warns of rows that will be cut, and of validation rows trained on."""
    from tokenizers import Tokenizer

    assert job.data is not None
    tokenizer = Tokenizer.from_file(str(job.model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def count_tokens(texts: list[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]

    cutoff = int(job.settings.get("cutoff_len", 2048))
    positions = read_json(job.model / "config.json").get("max_position_embeddings", cutoff)
    if cutoff > positions:
        raise UserError(f"cutoff_len is {cutoff}, but {job.model} was made for {positions} positions: lower cutoff_len")
    ranking = job.settings.get("stage") in ("dpo", "rm")
    found = {}
    for name in job.datasets():
        path = job.data / f"{name}.json"
        found[name] = check_dataset(path, ranking, count_tokens, cutoff)
        if found[name].too_long:
            print(f"warning: {path}: {found[name].too_long} answers end beyond cutoff_len {cutoff} and will be cut")
    held_out = [n for n in found if n in str(job.settings.get("eval_dataset") or "").replace(" ", "").split(",")]
    for name in held_out:
        leaked = sum(len(found[name].keys & found[n].keys) for n in found if n not in held_out)
        if leaked:
            print(f"warning: {job.data / name}.json: {leaked} rows are in the training data too")
    return found


def fingerprint(job: Job) -> str:
    """A hash of everything that decides the result: settings, bytes of model, adapter and data, and versions."""
    parts: dict[str, Any] = {"recipe": job.recipe, "settings": job.settings, "versions": versions()}
    parts["model"] = sha256(job.model)
    if job.adapter:
        parts["adapter"] = sha256(job.adapter)
    if job.data:
        parts["data"] = {name: sha256(job.data / f"{name}.json") for name in job.datasets()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def versions() -> dict[str, str]:
    found = {}
    for package in ("llamafactory", "transformers", "trl", "peft", "datasets", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The work folder


def render(job: Job) -> str:
    """The YAML that LLaMA-Factory gets: the settings and the paths of this run."""
    import yaml

    paths = {"model_name_or_path": str(job.model)}
    if job.adapter:
        paths["adapter_name_or_path"] = str(job.adapter)
    if job.exports:
        paths["export_dir"] = str(job.raw)
    else:
        paths |= {
            "dataset_dir": str(job.work),
            "output_dir": str(job.raw),
            "cache_dir": str(job.work / "cache"),
        }
    return yaml.safe_dump({**paths, **job.settings}, allow_unicode=True, sort_keys=False)


def dataset_info(job: Job) -> dict[str, Any]:
    """LLaMA-Factory's description of the data files: their names, columns, and whether they hold pairs."""
    assert job.data is not None
    ranking = job.settings.get("stage") in ("dpo", "rm")
    columns = {"prompt": "instruction", "query": "input"}
    columns |= {"chosen": "chosen", "rejected": "rejected"} if ranking else {"response": "output"}
    return {
        name: {"file_name": str(job.data / f"{name}.json"), "ranking": ranking, "columns": columns}
        for name in job.datasets()
    }


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: weights, optimizer, and the trainer's state, all readable."""
    from safetensors import SafetensorError, safe_open

    weights = [p for p in checkpoint.glob("*.safetensors")]
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if not weights or state["global_step"] != int(checkpoint.name.rpartition("-")[2]):
            return False
        for file in weights:
            with safe_open(file, framework="numpy") as tensors:  # refuses a file shorter than its header says
                tensors.keys()
        for name in ("optimizer.pt", "scheduler.pt"):  # zip files with a checksum for each tensor
            with zipfile.ZipFile(checkpoint / name) as archive:
                if archive.testzip() is not None:
                    return False
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, zipfile.BadZipFile):
        return False
    return True


def clean_checkpoints(raw: Path) -> int:
    """Delete half-written checkpoints; returns the step of the newest whole one, 0 when there is none."""
    newest = 0
    for checkpoint in raw.glob("checkpoint-*"):
        if is_whole(checkpoint):
            newest = max(newest, int(checkpoint.name.rpartition("-")[2]))
        else:
            print(f"{checkpoint.name} is half written: deleted")
            shutil.rmtree(checkpoint)
    return newest


def prepare_work(job: Job, mark: str) -> int:
    """Fill the work folder, keeping what an interrupted run of the same job left; returns the step to resume from."""
    marker = job.work / "fingerprint"
    if job.work.exists() and not (marker.is_file() and marker.read_text(encoding="utf-8").strip() == mark):
        print(f"{job.work.name} belongs to other inputs or settings: starting afresh")
        shutil.rmtree(job.work)
    job.work.mkdir(parents=True, exist_ok=True)
    write_text(marker, mark + "\n")
    write_text(job.yaml, render(job))
    if job.data:
        write_json(job.work / "dataset_info.json", dataset_info(job))
    if job.exports:
        shutil.rmtree(job.raw, ignore_errors=True)
        return 0
    if not any(job.raw.glob("checkpoint-*")):
        return 0
    return clean_checkpoints(job.raw)


# ---------------------------------------------------------------------------------------------------------------------
# Running LLaMA-Factory


def command(job: Job) -> list[str]:
    tool = Path(sys.executable).with_name("llamafactory-cli")
    return [str(tool), "export" if job.exports else "train", str(job.yaml)]


def added_environment() -> dict[str, str]:
    """What LLaMA-Factory gets besides the caller's own environment, whose OMP_WAIT_POLICY goes before ours.

    Offline; and idle threads sleep instead of spinning, because a spinning thread takes the core from the one it waits
    for when other processes share the cores.
    """
    return {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY") or "PASSIVE"}


def child_environment() -> dict[str, str]:
    """The environment of LLaMA-Factory; it keeps compiled bytecode, without which every start costs 10 s more."""
    environment = {**os.environ, **added_environment(), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def follow_progress(log: Path, stop: threading.Event) -> None:
    """Print `progress N/M steps` from LLaMA-Factory's trainer_log.jsonl, at most once a second, until `stop` is set."""
    shown = ""
    while not stop.wait(1.0):
        try:
            last = log.read_text(encoding="utf-8").splitlines()[-1]
            entry = json.loads(last)
            line = f"progress {entry['current_steps']}/{entry['total_steps']} steps"
        except (OSError, IndexError, ValueError, KeyError):
            continue  # not there yet, or a line half written
        if line != shown:
            shown = line
            print(line, flush=True)


def run_tool(job: Job) -> float:
    """Run LLaMA-Factory, passing its output on and keeping it in `<output>.work/log`; returns seconds.

    It stays in this process's group, so that whoever kills the group kills it too. Raises UserError with the last
    line of its output when it fails.
    """
    log = job.work / "log"
    started = time.monotonic()
    stop = threading.Event()
    follower = threading.Thread(target=follow_progress, args=(job.raw / "trainer_log.jsonl", stop), daemon=True)
    tail = b""
    with log.open("ab") as kept:
        process = subprocess.Popen(
            command(job), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=child_environment(), bufsize=0
        )
        assert process.stdout is not None
        follower.start()
        try:
            while chunk := process.stdout.read(1 << 16):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                kept.write(chunk)
                tail = (tail + chunk)[-4000:]
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            stop.set()
            follower.join()
    if code:
        lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else (lines[-1] if lines else "no output")
        if code == -signal.SIGKILL:
            reason += " (out of memory? lower per_device_train_batch_size)"
        raise UserError(f"llamafactory-cli failed: {reason}; its log is {log}")
    return time.monotonic() - started


# ---------------------------------------------------------------------------------------------------------------------
# The output folder


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


def check_weights(folder: Path, config: dict[str, Any]) -> str:
    """The weights' type (`float32`); raises UserError when the embedding is not as large as config.json says."""
    from safetensors import safe_open

    rows, kind = 0, ""
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():
                part = tensors.get_slice(name)
                kind = kind or part.get_dtype()
                if name.endswith("embed_tokens.weight"):
                    rows = part.get_shape()[0]
    if rows != config["vocab_size"]:
        raise UserError(f"{folder}: the embedding has {rows} rows, config.json says {config['vocab_size']}")
    return {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}.get(kind, kind)


def fill_chat_model(origin: Path, weights: Path, output: Path, ids: dict[str, int]) -> None:
    """Fill `output` with the weights of `weights` and everything else of `origin`, the model that was trained.

    Config and tokenizer come from the origin because LLaMA-Factory rewrites both when it saves; of the tokenizer only
    the name of its end token changes.
    """
    config = chat_config(read_json(origin / "config.json"), ids)
    kind = check_weights(weights, config)
    config["dtype" if "dtype" in config else "torch_dtype"] = kind
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


def fill_adapter(raw: Path, output: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(raw / name, output / name)


# ---------------------------------------------------------------------------------------------------------------------
# Merging: the proof


def check_inputs(model: Path) -> list[Any]:
    """Token ids of the check conversations, each of shape [1, tokens]."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    inputs = []
    for turns in CHECK_CONVERSATIONS:
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        inputs.append(torch.tensor([ids]))
    return inputs


def adapter_logits(model: Path, adapter: Path) -> tuple[dict[str, list[Any]], float]:
    """Logits of model and adapter for the check conversations, by precision, and how far the adapter moves any logit.

    Shapes: a list of [1, tokens, vocabulary] under each of MERGE_PRECISIONS.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    inputs = check_inputs(model)
    logits: dict[str, list[Any]] = {}
    moved = 0.0
    with torch.no_grad():
        for precision in MERGE_PRECISIONS:
            dtype = getattr(torch, precision)
            base = AutoModelForCausalLM.from_pretrained(str(model), dtype=dtype).eval()
            before = [base(input_ids=ids).logits for ids in inputs]
            adapted = PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=False).to(dtype).eval()
            logits[precision] = [adapted(input_ids=ids).logits for ids in inputs]
            moved = largest_difference(before, logits[precision])
    return logits, moved


def merged_logits(origin: Path, merged: Path) -> dict[str, list[Any]]:
    """Logits of the merged model for the check conversations, by precision."""
    import torch
    from transformers import AutoModelForCausalLM

    inputs = check_inputs(origin)
    logits = {}
    with torch.no_grad():
        for precision in MERGE_PRECISIONS:
            model = AutoModelForCausalLM.from_pretrained(str(merged), dtype=getattr(torch, precision)).eval()
            logits[precision] = [model(input_ids=ids).logits for ids in inputs]
    return logits


def largest_difference(one: list[Any], other: list[Any]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def thin(curve: list[list[float]], points: int = CURVE_POINTS) -> list[list[float]]:
    """At most `points` points of a curve, evenly spaced, the first and the last among them."""
    if len(curve) <= points:
        return curve
    return [curve[round(i * (len(curve) - 1) / (points - 1))] for i in range(points)]


def training_metrics(job: Job, data: dict[str, Dataset], resumed_at: int) -> dict[str, Any]:
    """Losses, curves and speed, from LLaMA-Factory's trainer_state.json and train_results.json.

    `train_loss` is the mean of the last tenth of the curve: the trainer's own is wrong after a resume.
    """
    state = read_json(job.raw / "trainer_state.json")
    history = state["log_history"]

    def curve(key: str, percent: bool = False) -> list[list[float]]:
        points = {entry["step"]: entry[key] for entry in history if key in entry}
        return [[step, round(points[step] * (100 if percent else 1), 6)] for step in sorted(points)]

    losses = curve("loss")
    metrics: dict[str, Any] = {"steps": state["global_step"], "resumed_at_step": resumed_at}
    if losses:
        last = losses[-max(1, len(losses) // 10) :]
        metrics["train_loss"] = round(sum(loss for _, loss in last) / len(last), 6)
        metrics["loss_curve"] = thin(losses)
        if not math.isfinite(metrics["train_loss"]):
            raise UserError(f"the loss is {metrics['train_loss']}: lower learning_rate ({job.yaml})")
    after = job.raw / "eval_results.json"  # the last evaluation comes after the state was saved
    if after.exists():
        history.append({"step": state["global_step"], **read_json(after)})
    validation = curve("eval_loss")
    if validation:
        metrics |= {"eval_loss_curve": thin(validation), "eval_loss_after": validation[-1][1]}
        if validation[0][0] == 0:
            metrics["eval_loss_before"] = validation[0][1]
    for key, name in (("rewards/accuracies", "reward_accuracy"), ("eval_rewards/accuracies", "eval_reward_accuracy")):
        points = curve(key, percent=True)
        if points:
            metrics |= {name: points[-1][1], f"{name}_curve": thin(points)}
    margins = curve("eval_rewards/margins")
    if margins:
        metrics["eval_reward_margin"] = margins[-1][1]
    training = data[str(job.settings["dataset"]).split(",")[0].strip()]
    metrics["train_rows"], metrics["tokens_per_row"] = training.rows, round(training.tokens / training.rows, 1)
    seconds = read_json(job.raw / "train_results.json")["train_runtime"]
    batch = state.get("train_batch_size") or job.settings.get("per_device_train_batch_size", 8)
    rows = (state["global_step"] - resumed_at) * batch * job.settings.get("gradient_accumulation_steps", 1)
    rows = min(rows, training.rows * state["epoch"])
    metrics["train_seconds"] = round(seconds, 1)
    metrics["rows_per_second"] = round(rows / seconds, 1)
    metrics["tokens_per_second"] = round(rows * training.tokens / training.rows / seconds)
    return metrics


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def is_done(job: Job, mark: str) -> bool:
    try:
        return json.loads((job.output / PROVENANCE).read_text(encoding="utf-8"))["fingerprint"] == mark
    except (OSError, ValueError, KeyError, TypeError):
        return False


def provenance(job: Job, mark: str) -> dict[str, Any]:
    """What made the output; no seconds and no paths, so that the same inputs give the same bytes."""
    return {"fingerprint": mark, "recipe": job.recipe, "settings": job.settings, "versions": versions()}


def train(job: Job, mark: str, ids: dict[str, int], data: dict[str, Dataset], resumed_at: int) -> dict[str, Any]:
    finished = job.work / "trained.json"  # survives a kill between the end of training and the output folder
    if finished.exists():
        metrics = read_json(finished)
    else:
        if resumed_at:
            print(f"resuming from step {resumed_at}", flush=True)
        seconds = run_tool(job)
        metrics = {**training_metrics(job, data, resumed_at), "tool_seconds": round(seconds, 1)}
        write_json(finished, metrics)
    with atomic_folder(job.output) as aside:
        if job.gives_adapter:
            fill_adapter(job.raw, aside)
        else:
            fill_chat_model(job.model, job.raw, aside, ids)
        write_json(aside / PROVENANCE, provenance(job, mark))
    for checkpoint in job.raw.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    shutil.rmtree(job.work / "cache", ignore_errors=True)
    return metrics


def merge(job: Job, mark: str, ids: dict[str, int]) -> dict[str, Any]:
    assert job.adapter is not None
    with ThreadPoolExecutor(1) as pool:
        expected = pool.submit(adapter_logits, job.model, job.adapter)  # while LLaMA-Factory loads
        seconds = run_tool(job)
        logits, moved = expected.result()
    with atomic_folder(job.output) as aside:
        fill_chat_model(job.model, job.raw, aside, ids)
        merged = merged_logits(job.model, aside)
        differences = {kind: largest_difference(logits[kind], merged[kind]) for kind in MERGE_PRECISIONS}
        difference = differences[MERGE_PRECISIONS[0]]
        gate = {
            "max_abs_diff": difference,
            "max_abs_diff_float32": differences["float32"],
            "arithmetic": MERGE_PRECISIONS[0],
            "tolerance": MERGE_TOLERANCE,
            "max_abs_change": moved,  # how far the adapter moved a logit: 0 would mean that it learned nothing
            "prompts": len(CHECK_CONVERSATIONS),
        }
        write_json(job.work / "merge.json", gate)
        if not difference <= MERGE_TOLERANCE:
            raise UserError(
                f"merged logits differ from the adapter's by {difference:.3g} (allowed {MERGE_TOLERANCE:g}): was "
                f"{job.adapter} trained on {job.model}? See {job.work / 'merge.json'}"
            )
        write_json(aside / "merge.json", gate)
        write_json(aside / PROVENANCE, provenance(job, mark))
    shutil.rmtree(job.raw)
    return {**gate, "tool_seconds": round(seconds, 1)}


def run(job: Job, dry_run: bool) -> None:
    ids = check_model(job.model)
    data: dict[str, Dataset] = {}
    if job.adapter:
        check_adapter(job.adapter)
    if job.data:
        data = check_data(job)
    prefix = " ".join(f"{key}={value}" for key, value in added_environment().items())
    shown = f"{prefix} {shlex.join(command(job))}"
    if dry_run:
        print(f"# {job.yaml}\n{render(job)}\n{shown}")
        return
    mark = fingerprint(job)
    if is_done(job, mark):
        print(f"{job.output} is finished, with the same inputs and settings: nothing to do")
        known = job.work / "metrics.json"
        if known.exists():
            report_metrics(**read_json(known))
        return
    resumed_at = prepare_work(job, mark)
    print(f"rendered {job.yaml}\n+ {shown}", flush=True)
    metrics = merge(job, mark, ids) if job.exports else train(job, mark, ids, data, resumed_at)
    write_json(job.work / "metrics.json", metrics)
    report_metrics(**metrics)


def parse(argv: list[str] | None) -> tuple[Job, bool]:
    parser = argparse.ArgumentParser(prog="python -m launch.posttrain", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", metavar="RECIPE", help="a file of llamafactory_configs/: sft_full, dpo_lora, merge")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of the model to start from")
    parser.add_argument("--data", type=Path, help="folder of <dataset>.json files (training recipes)")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter (recipe merge)")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; <output>.work is the work folder")
    parser.add_argument("--hardware", default="cpu", help="a file of llamafactory_configs/hardware/ (default: cpu)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of the recipe")
    parser.add_argument("--seed", type=int, help="seed of data order and initial weights (default: the recipe's)")
    parser.add_argument("--dry-run", action="store_true", help="print the YAML and the command, run nothing")
    options = parser.parse_args(argv)

    settings, exports = recipe_settings(options.recipe, options.hardware, options.set, options.seed)
    if exports and not options.adapter:
        raise UserError(f"{options.recipe} merges an adapter: give it with --adapter")
    if not exports and not options.data:
        raise UserError(f"{options.recipe} trains: give the folder of its data files with --data")

    def absolute(path: Path | None) -> Path | None:
        return Path(os.path.abspath(path)) if path else None

    job = Job(
        recipe=options.recipe,
        model=Path(os.path.abspath(options.model)),
        output=Path(os.path.abspath(options.output)),
        data=None if exports else absolute(options.data),
        adapter=absolute(options.adapter) if exports else None,
        settings=settings,
        exports=exports,
    )
    return job, options.dry_run


def main(argv: list[str] | None = None) -> int:
    job, dry_run = parse(argv)
    run(job, dry_run)
    return 0


if __name__ == "__main__":
    run_main(main)

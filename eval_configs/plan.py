"""What a suite will ask, before any model is loaded: every set, loaded and counted by OpenCompass's own loaders.

    .venv-eval/bin/python -m eval_configs.plan eval_configs/base_ppl.py --output plan.json

Run by `launch.scoring.evaluate`, in OpenCompass's environment, with the variables of `eval_configs/settings.py`. A set
that is missing, cut short, or holds a question without an answer is an error that names it. OpenCompass would go to the
network for a missing set; here it is not asked.

plan.json: {"opencompass": version, "pairs": [{"model", "dataset", "set", "entry", "kind": ppl or gen, "shots", "tokens"
(of an answer that is written), "n", "chance", "labels", "config": sha256 of the resolved configuration, "data": sha256
of the rows, "ids": null or one a question}]}. "set" is the name that people see; "entry" is its key in sets.yaml.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import read_yaml, write_json

SETS = Path(__file__).with_name("sets.yaml")
KINDS = {"GenInferencer": "gen", "PPLInferencer": "ppl", "ChoiceInferencer": "ppl"}

# Of a model's configuration, what does not change how it is asked.
NO_PROTOCOL = ("abbr", "path", "openai_api_base", "tokenizer_path", "batch_size")


def read_sets(config: Path) -> dict[str, Any]:
    """The entries of sets.yaml; a suite of your own adds its sets in a YAML file beside it, of the same name."""
    own = config.with_suffix(".yaml")
    return read_yaml(SETS) | (read_yaml(own) if own.exists() else {})


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def set_of(abbr: str, sets: dict[str, Any]) -> str:
    """The set that a dataset of OpenCompass belongs to; raises UserError when sets.yaml has none for it."""
    found = [name for name, entry in sets.items() if abbr.startswith(entry["match"])]
    if len(found) != 1:
        raise UserError(f"{SETS.name} has {len(found)} sets for the dataset {abbr!r}: give it one, with its choices")
    return found[0]


def resolved(config: Path) -> Any:
    """The configuration as `opencompass` itself runs it: written out whole, and read again with names for classes."""
    from mmengine.config import Config

    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "config.py"
        Config.fromfile(config, format_python_code=False).dump(whole)
        return Config.fromfile(whole, format_python_code=False)


def chance_of(rows: Any, columns: list[str]) -> float:
    """Expected accuracy of a guess among the different answers of each question, in percent."""
    return 100 * sum(1 / len({row[column] for column in columns}) for row in rows) / len(rows)


def look_at(dataset: Any, sets: dict[str, Any]) -> dict[str, Any]:
    """Load one dataset and say what is in it; raises UserError when a score of it would mean nothing."""
    from opencompass.utils import build_dataset_from_cfg

    abbr, infer = dataset["abbr"], dataset["infer_cfg"]
    key = set_of(abbr, sets)
    entry = sets[key]
    name = abbr.removeprefix("questions-") if key == "questions" else key  # a file of questions is named by itself
    mend = f"`myllm download {name}`, or leave it out by --sets" if "data" in entry else "mend the questions"
    try:
        loaded = build_dataset_from_cfg(dataset)
        rows, examples = loaded.test, loaded.train
    except UserError:
        raise
    except Exception as error:  # whatever a loader raises, the set cannot be asked
        told = " ".join(str(error).split())[:200]
        raise UserError(f"the set {name} ({abbr}) cannot be loaded ({type(error).__name__}: {told}): {mend}") from None
    if not len(rows):
        raise UserError(f"the set {name} ({abbr}) holds no question: {mend}")
    shown = list(infer["retriever"].get("fix_id_list", []))
    if shown and len(examples) <= max(shown):
        raise UserError(f"the set {name} ({abbr}) has {len(examples)} examples, the prompt shows {len(shown)}: {mend}")
    kind = KINDS[str(infer["inferencer"]["type"]).rpartition(".")[2]]
    template = infer["prompt_template" if "prompt_template" in infer else "ice_template"]["template"]
    columns = entry.get(f"choices_{kind}", entry["choices"])
    if not set(columns) <= set(rows.column_names):
        columns = [column for column in "ABCDEFG" if column in rows.column_names]
    labels = [str(label) for label in template] if kind == "ppl" else list("ABCDEFG"[: len(columns)])
    answer = dataset["reader_cfg"]["output_column"]
    for number, gold in enumerate(rows[answer], start=1):
        if str(gold) not in labels:
            raise UserError(
                f"the set {name} ({abbr}), question {number}: its answer is {gold!r}, not one of {', '.join(labels)}: "
                "no model could be right. Take the split that has answers, or mend the file"
            )
    # the prefix of a question depends on the model's chat template: the same questions must have the same digest
    used = [{column: row[column] for column in row if column not in ("subdivision", "idx", "prefix")} for row in rows]
    before = [examples[number] for number in shown]
    asked = {key: value for key, value in dataset.items() if key not in ("path", "data_files", "abbr", "chat_of")}
    return {
        "dataset": abbr,
        "set": name,
        "entry": key,
        "kind": kind,
        "shots": len(shown),
        "n": len(rows),
        "chance": round(chance_of(rows, columns), 4),
        "labels": labels,
        "config": digest(asked),
        "data": digest([used, before]),
        "ids": list(rows["id"]) if "id" in rows.column_names and key == "questions" else None,
    }


def plan(config: Path) -> dict[str, Any]:
    """Every (model, dataset) pair of a suite; raises UserError when one could not be scored."""
    import opencompass
    from opencompass.utils import datasets as places

    places.DATASETS_URL.clear()  # what is not here is an error, not a download
    cfg, sets = resolved(config), read_sets(config)
    together = cfg.get("model_dataset_combinations") or [dict(models=cfg["models"], datasets=cfg["datasets"])]
    pairs: list[dict[str, Any]] = []
    seen: dict[str, dict[str, Any]] = {}
    for group in together:
        for dataset in group["datasets"]:
            key = digest(dataset)
            if key not in seen:
                seen[key] = look_at(dataset, sets)
            for model in group["models"]:
                how = {name: model[name] for name in model if name not in NO_PROTOCOL}
                found = {**seen[key], "model": model["abbr"], "tokens": model.get("max_out_len")}
                pairs.append({**found, "config": digest([found["config"], how])})
    if not pairs:
        raise UserError(f"{config} asks nothing: it names no model, or --sets leaves no set")
    names = [(pair["model"], pair["dataset"]) for pair in pairs]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise UserError(f"{config}: {double[0]} is asked {double[1]} twice under one name: give one another abbr")
    return {"opencompass": opencompass.__version__, "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a suite, e.g. eval_configs/base_ppl.py")
    parser.add_argument("--output", type=Path, required=True, help="plan.json")
    arguments = parser.parse_args()
    if not arguments.config.exists():
        raise UserError(f"{arguments.config} does not exist: give a file of eval_configs/")
    write_json(arguments.output, plan(arguments.config))


if __name__ == "__main__":
    run_main(main)

"""Load and count every set of a suite with OpenCompass's own loaders, before any model is loaded.

    .venv-eval/bin/python -m eval_configs.plan eval_configs/base_ppl.py --output plan.json

`launch.scoring.evaluate` runs it in OpenCompass's environment, with the variables of `eval_configs/settings.py`. If a
set is missing or truncated, or has a question without an answer, an error names it. OpenCompass would download a
missing set; here downloads are off.

plan.json: {"opencompass": version, "pairs": [{"model", "dataset", "set", "entry", "kind": ppl or gen, "shots",
"tokens": most new tokens of a generated answer, "n", "chance", "labels", "config": sha256 of the resolved
configuration, "data": sha256 of the rows, "ids": null or one per question}]}. "set" is the name in reports, "entry" is
its key in sets.yaml.
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

# Keys of a model's configuration that do not change its scores.
NO_PROTOCOL = ("abbr", "path", "openai_api_base", "tokenizer_path", "batch_size")


def read_sets(config: Path) -> dict[str, Any]:
    """The entries of sets.yaml, and those of a YAML file beside the suite with the same name, if there is one."""
    own = config.with_suffix(".yaml")
    return read_yaml(SETS) | (read_yaml(own) if own.exists() else {})


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def set_of(abbr: str, sets: dict[str, Any]) -> str:
    """The key of the set that a dataset of OpenCompass belongs to. Raises UserError unless exactly one matches."""
    found = [name for name, entry in sets.items() if abbr.startswith(entry["match"])]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} entries of {SETS.name} match the dataset {abbr!r}: write one entry whose `match` begins its "
            "name, in a YAML file beside the suite (eval_configs/README.md)"
        )
    return found[0]


def resolved(config: Path) -> Any:
    """The configuration as `opencompass` runs it: dumped to one file and read again, with class names as strings."""
    from mmengine.config import Config

    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "config.py"
        Config.fromfile(config, format_python_code=False).dump(whole)
        return Config.fromfile(whole, format_python_code=False)


def chance_of(rows: Any, columns: list[str]) -> float:
    """Expected accuracy in percent of a random guess among the distinct choices of each question."""
    return 100 * sum(1 / len({row[column] for column in columns}) for row in rows) / len(rows)


def look_at(dataset: Any, sets: dict[str, Any]) -> dict[str, Any]:
    """Load one dataset and describe it as in plan.json. Raises UserError if it cannot be scored."""
    from opencompass.utils import build_dataset_from_cfg

    abbr, infer = dataset["abbr"], dataset["infer_cfg"]
    key = set_of(abbr, sets)
    entry = sets[key]
    name = abbr.removeprefix("questions-") if key == "questions" else key  # the set's name is the file's
    mend = f"`myllm download {name}`, or leave it out with --sets" if "data" in entry else "correct the questions"
    try:
        loaded = build_dataset_from_cfg(dataset)
        rows, examples = loaded.test, loaded.train
    except UserError:
        raise
    except Exception as error:  # a loader may raise anything
        told = " ".join(str(error).split())[:200]
        raise UserError(f"the set {name} ({abbr}) cannot be loaded ({type(error).__name__}: {told}): {mend}") from None
    if not len(rows):
        raise UserError(f"the set {name} ({abbr}) has no questions: {mend}")
    shown = list(infer["retriever"].get("fix_id_list", []))
    if shown and len(examples) <= max(shown):
        raise UserError(f"the set {name} ({abbr}) has {len(examples)} examples, the prompt needs {len(shown)}: {mend}")
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
                f"the set {name} ({abbr}), question {number}: its answer is {gold!r}, not one of {', '.join(labels)}. "
                "Use a split that has answers, or correct the file"
            )
    # leave out the prefix: it depends on the chat template, and the same questions must have the same digest
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
    """The plan of a suite, with every (model, dataset) pair. Raises UserError if one cannot be scored."""
    import opencompass
    from opencompass.utils import datasets as places

    places.DATASETS_URL.clear()  # no downloads: a missing set is an error
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
        raise UserError(f"{config} has nothing to run: it has no model, or --sets excludes every set")
    names = [(pair["model"], pair["dataset"]) for pair in pairs]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise UserError(f"{config}: model {double[0]} has the dataset {double[1]} twice: give one of them another abbr")
    return {"opencompass": opencompass.__version__, "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="suite, e.g. eval_configs/base_ppl.py")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write, e.g. plan.json")
    arguments = parser.parse_args()
    if not arguments.config.exists():
        raise UserError(f"{arguments.config} does not exist: give a file of eval_configs/")
    write_json(arguments.output, plan(arguments.config))


if __name__ == "__main__":
    run_main(main)

"""CONTRIBUTING.md's table of changes: a toy of each kind is added from outside, without touching the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_qwen2 import make_tiny_qwen2

from artifacts.files import read_json, read_jsonl, read_yaml, write_json, write_jsonl
from artifacts.layout import REPOSITORY
from artifacts.processes import free_port

MYLLM = [sys.executable, "-m", "launch.cli"]


def myllm(folder: Path, *words: object) -> str:
    """Run `myllm WORDS` in a folder of the user's own; returns what it prints."""
    done = subprocess.run(
        [*MYLLM, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("model") / "tiny")


def test_an_architecture_is_a_file(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral, from Hugging Face to Megatron and back: the rules are Llama's, the class is another."""
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig

    from converters import architectures, export, import_hf

    (tmp_path / "mistral_toy.py").write_text(
        "from converters.architectures.llama2 import layer_rules, model_rules\n"
        "from converters.families import decoder_config, shape_of_config\n"
        'MODEL_TYPE, ARCHITECTURE, FLAGS = "mistral", "MistralForCausalLM", None\n'
        "def config(shape):\n"
        '    return {**decoder_config(shape), "sliding_window": None}\n'
        "def shape_of(config):\n"
        '    return shape_of_config(config, qkv_bias=False, unset={"sliding_window": None})\n'
    )
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path)])
    assert "mistral_toy" in architectures.names()
    size = len(read_json(tiny / "vocab.json")) + 3
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        MistralConfig(
            vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, sliding_window=None, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "hf" / name).write_bytes((tiny / name).read_bytes())
    assert import_hf.import_folder(tmp_path / "hf", tmp_path / "megatron")["passed"]
    made = export.export(tmp_path / "megatron", tmp_path / "hf", tmp_path / "back", architecture="mistral_toy")
    assert made["passed"] and read_json(tmp_path / "back" / "config.json")["architectures"] == ["MistralForCausalLM"]


def test_an_engine_is_a_file(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launch.serving import engines, serve

    (tmp_path / "toy.py").write_text(
        'ENVIRONMENT, ON_CPU, SET_BY_THE_LAUNCHER, SHORT = "train", True, ["--port"], {}\n'
        'CPU_HEAD_SIZES, ARCHITECTURES = (), ("transformers/models/auto/modeling_auto.py", "MODEL_MAPPING_NAMES")\n'
        "def command(plan):\n"
        '    return ["toy-serve", str(plan.folder), "--port", str(plan.port), *plan.extra]\n'
        "def variables(plan):\n"
        '    return {"TOY": "1"}\n'
    )
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])
    assert engines.names() == ["lmdeploy", "toy", "vllm"]
    monkeypatch.setattr(serve, "check_model", lambda *_: read_json(tiny / "config.json"))
    plan = serve.make_plan(tiny, free_port(), engine="toy", options=["x=1"])
    assert "TOY=1" in engines.printed(plan) and engines.printed(plan).endswith("--x 1")


def test_a_corpus_is_a_function(tmp_path: Path) -> None:
    """Records of another shape: a function from a record to its text, in a file of one's own."""
    (tmp_path / "my_forum.py").write_text(
        'def text(record):\n    return record["question"] + "\\n" + record["answer"]\n'
    )
    answer = "上海的春天多雨，夏天炎热，秋天是一年里最舒服的季节，冬天有时会下雪，但积雪很少。"
    rows = [
        {"question": f"第{n}问：上海的天气怎么样？", "answer": f"{answer}{n * 37 % 101}度。", "likes": n}
        for n in range(60)
    ]
    write_jsonl(tmp_path / "forum.jsonl", rows)
    myllm(
        tmp_path, "corpora", "--source", "my_forum.text", "--input", "forum.jsonl", "--output-folder", "corpus",
        "--tasks", 1, "--workers", 1, "--set", "min_characters=10",
    )  # fmt: skip
    files = sorted((tmp_path / "corpus").glob("shards/**/*.jsonl*"))
    kept = [row for file in files for row in read_jsonl(file)]
    assert kept and all(row["text"].startswith("第") and "question" not in row["metadata"] for row in kept)
    assert all(row["metadata"]["likes"] == int(row["text"].partition("问")[0][1:]) for row in kept)


def test_recipes_and_hardware_are_files(tmp_path: Path, tiny: Path) -> None:
    """A model, a flag of Megatron's, a hardware profile, a post-training recipe: YAML files given by their paths."""
    from launch.pretraining import recipe

    model = read_yaml(REPOSITORY / "megatron_configs" / "models" / "qwen2-tiny.yaml") | {"num-layers": 2}
    training = read_yaml(REPOSITORY / "megatron_configs" / "training" / "demo.yaml") | {"adam-eps": 1e-9}
    hardware = read_yaml(REPOSITORY / "megatron_configs" / "hardware" / "cpu.yaml") | {"micro-batch-size": 2}
    for name, keys in (("model", model), ("training", training), ("hardware", hardware)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(keys))
    names = [str(tmp_path / f"{name}.yaml") for name in ("model", "training", "hardware")]
    flags = recipe.flags(recipe.load_recipe(*names))
    assert flags[flags.index("--adam-eps") + 1] == "1e-09" and flags[flags.index("--num-layers") + 1] == "2"
    assert flags[flags.index("--micro-batch-size") + 1] == "2"

    freeze = read_yaml(REPOSITORY / "llamafactory_configs" / "sft_full.yaml") | {
        "finetuning_type": "freeze",
        "freeze_trainable_layers": 1,
    }
    (tmp_path / "sft_freeze.yaml").write_text(yaml.safe_dump(freeze))
    rows = [{"instruction": f"说{n}。", "input": "", "output": f"{n}"} for n in range(8)]
    for part in ("train", "valid"):
        write_json(tmp_path / "data" / f"sft_{part}.json", rows)
    said = myllm(
        tmp_path, "posttrain", "sft_freeze.yaml", "--model", tiny, "--data", "data", "--output", "out",
        "--hardware", REPOSITORY / "llamafactory_configs" / "hardware" / "cpu.yaml", "--dry-run",
    )  # fmt: skip
    assert "sft_freeze.yaml" in said


def test_a_reward_is_a_function(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def short(prompts, completions, **_):\n"
        '    return [1.0 / (1 + len(done[-1]["content"])) for done in completions]\n'
    )
    rows = [{"instruction": f"说{n}。", "input": "", "output": f"{n}"} for n in range(8)]
    for part in ("train", "valid"):
        write_json(tmp_path / "data" / f"rl_{part}.json", rows)
    said = myllm(
        tmp_path, "posttrain", "grpo", "--model", tiny, "--data", "data", "--output", "out",
        "--set", "reward_funcs=[my_rewards.short]", "--dry-run",
    )  # fmt: skip
    assert "launch.posttraining.grpo" in said


def test_a_stage_and_a_pipeline_are_files(tmp_path: Path) -> None:
    """A pipeline of one's own, given by its path; its stages may be modules beside it."""
    (tmp_path / "my_stage.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        "from artifacts.stage import report_metrics\n"
        "Path(sys.argv[1]).mkdir(exist_ok=True)\n"
        '(Path(sys.argv[1]) / "greeting.txt").write_text("你好")\n'
        "report_metrics(greetings=1)\n"
    )
    pipeline = {
        "name": "mine",
        "description": "one stage",
        "values": {},
        "stages": {"greet": {"commands": ["python -m my_stage {run}/greetings"], "reads": ["my_stage.py"]}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(pipeline))
    said = myllm(tmp_path, "run", "mine.yaml", "--run-folder", tmp_path / "run")
    assert "done in" in said and (tmp_path / "run" / "greetings" / "greeting.txt").read_text() == "你好"
    assert "skipped" in myllm(tmp_path, "run", "mine.yaml", "--run-folder", tmp_path / "run")


@pytest.mark.slow
def test_an_evaluation_set_is_a_suite_and_its_entry(tmp_path: Path, tiny: Path) -> None:
    """A suite of one's own with a set of its own: two files, anywhere."""
    (tmp_path / "my_suite.py").write_text(
        "from mmengine.config import read_base\n"
        "from eval_configs.models import BaseModel\n"
        "with read_base():\n"
        "    from eval_configs.questions_set import own_datasets\n"
        "    from eval_configs.running import eval, infer\n"
        "    from eval_configs.settings import base_settings\n"
        "models = [dict(type=BaseModel, **model) for model in base_settings]\n"
        'datasets = [dict(own_datasets[0], abbr="toy-first")]\n'
    )
    entry = {"match": "toy-", "title": "a toy", "choices": list("ABCD"), "protocol": {"ppl": "{shots}-shot, a toy"}}
    (tmp_path / "my_suite.yaml").write_text(yaml.safe_dump({"toy": entry}))
    rows = [
        {"id": str(n), "context": f"春{n}", "choices": ["风。", "花。", "水。", "山。"], "answer": n % 4}
        for n in range(4)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = myllm(
        tmp_path, "eval", f"base={tiny}", "--suite", "my_suite.py", "--questions", "mine.jsonl", "--output", "out",
    )  # fmt: skip
    assert "a toy" in said
    (row,) = read_json(tmp_path / "out" / "scores.json")
    assert row["suite"] == "toy" and row["n"] == 4 and row["chance"] == 25


def test_what_contributing_names_exists() -> None:
    """Every file and folder of the repository that CONTRIBUTING.md names, but those called NAME."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tops = "|".join(path.name for path in REPOSITORY.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = {word for word in re.findall(rf"`((?:{tops})/[\w./-]*)`", text) if "NAME" not in word}
    assert len(named) > 30 and not [name for name in named if not (REPOSITORY / name).exists()]

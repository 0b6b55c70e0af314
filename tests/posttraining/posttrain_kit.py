"""What the tests of post-training share: a random model of 0.1M weights, its data, and runs of the launcher."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from artifacts.layout import REPOSITORY
from launch.posttraining import work_folder as posttrain_work
from tests import warm as warm_programs

ALPHABET = "春夏秋冬风花雪月山水云雨江湖日夜天地人心"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(folder: Path) -> None:
    """A random Qwen2 with a byte-level BPE tokenizer, as pretraining hands it over."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator([ALPHABET, "下一句是什么？", *ALPHABET], trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_input_names": ["input_ids", "attention_mask"],
        "eos_token": SPECIAL[0],
        "pad_token": SPECIAL[0],
        "bos_token": None,
        "unk_token": None,
        "model_max_length": 256,
        "additional_special_tokens": list(SPECIAL[1:]),
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token in SPECIAL
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    torch.manual_seed(0)
    end = tokenizer.token_to_id(SPECIAL[0])
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=128,
            max_position_embeddings=256,
            rope_theta=1000.0,
            tie_word_embeddings=True,
            eos_token_id=end,
            pad_token_id=end,
            bos_token_id=None,
        )
    ).save_pretrained(folder)


def make_data(folder: Path, rows: int = 480) -> None:
    """Questions whose answer is the question's first character: learnable, all different. Pairs: first or last."""
    folder.mkdir()
    questions = ["".join(letters) for letters in itertools.permutations(ALPHABET, 3)]
    random.Random(0).shuffle(questions)
    sft = [{"instruction": "下一句是什么？", "input": q, "output": q[0] * 2} for q in questions[: rows + 40]]
    dpo = [
        {"instruction": "下一句是什么？", "input": q, "chosen": q[0] * 2, "rejected": q[2] * 2}
        for q in questions[: rows + 40]
    ]
    kto = [
        {"instruction": "下一句是什么？", "input": q, "output": q[0 if good else 2] * 2, "label": good}
        for q in questions[: rows + 40]
        for good in (True, False)
    ]
    for name, data in (
        ("kto_train", kto[:320]),
        ("kto_valid", kto[2 * rows : 2 * rows + 80]),
        ("sft_train", sft[:rows]),
        ("sft_valid", sft[rows : rows + 40]),
        ("dpo_train", dpo[:160]),
        ("dpo_valid", dpo[rows : rows + 40]),
    ):
        (folder / f"{name}.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def start(*arguments: object, env: dict[str, str] | None = None, warm: Path | None = None) -> subprocess.Popen[str]:
    """Start the launcher; with `warm`, the socket of the fixture of that name, where its imports are made already."""
    words = ["-m", "launch.posttraining.posttrain", *map(str, arguments)]
    return subprocess.Popen(
        warm_programs.command(warm, *words) if warm else [sys.executable, *words],
        cwd=REPOSITORY,
        env={**os.environ, **ONE_THREAD, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output[-3000:]
    return output


def sft_arguments(ground: Path, output: Path) -> list[object]:
    quick = ["--set", "per_device_train_batch_size=8", "--set", "save_steps=10", "--seed", 5]
    return ["sft_full", "--model", ground / "base", "--data", ground / "data", "--output", output, *quick]


def kill_after_checkpoint(
    process: subprocess.Popen[str], raw: Path, count: int, last: str = "trainer_state.json"
) -> None:
    """Kill the process group when `count` whole checkpoints exist, and wait until no process of it is left."""
    deadline = time.monotonic() + 120
    while sum(posttrain_work.is_whole(c) and (c / last).exists() for c in raw.glob("checkpoint-*")) < count:
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    while True:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "a child survived"
        time.sleep(0.02)


def said(warm: Path, code: str, *words: str) -> Any:
    """The JSON that code prints last, run where LLaMA-Factory, TRL and the launcher are imported already."""
    done = subprocess.run(
        warm_programs.command(warm, "-c", code, *words), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def work_metrics(output: Path) -> dict[str, Any]:
    return json.loads((output.with_name(output.name + ".work") / "metrics.json").read_text(encoding="utf-8"))


def measured(tmp_path: Path, warm: Path, *arguments: object) -> dict[str, Any]:
    metrics = tmp_path / "metrics.json"
    finish(start(*arguments, "--seed", 5, env={"MYLLM_METRICS": str(metrics)}, warm=warm))
    return json.loads(metrics.read_text())


def made_once(folders: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, once for all of pytest-xdist's workers; the others wait for it."""
    base = folders.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def warm_tools(name: Path, **variables: str) -> AbstractContextManager[Path]:
    """A server of `tests.warm` for tests/posttraining/warm_tools.py, behind a socket of this name."""
    module = "tests.posttraining.warm_tools"
    return warm_programs.serving(name, Path(sys.executable), module, **ONE_THREAD, **variables)

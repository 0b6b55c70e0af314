"""OpenCompass and the plan of a suite for `tests.warm`: imported once, forked for each run. See conftest.py."""

from __future__ import annotations

import sys


def preload() -> None:
    import opencompass.cli.main  # noqa: F401
    import opencompass.datasets  # noqa: F401
    import opencompass.models  # noqa: F401
    import opencompass.partitioners  # noqa: F401
    import opencompass.runners  # noqa: F401
    import opencompass.summarizers  # noqa: F401
    import opencompass.tasks  # noqa: F401
    from transformers import AutoModelForCausalLM, Qwen2ForCausalLM, Qwen2TokenizerFast  # noqa: F401

    from eval_configs import choice_inferencer, models, plan, questions_dataset  # noqa: F401


def run(words: list[str]) -> None:
    from artifacts.errors import run_main
    from eval_configs import plan

    if words[0] == "opencompass":
        from opencompass.cli.main import main

        sys.argv = words
        sys.exit(main())
    assert words[:2] == ["-m", "eval_configs.plan"]
    sys.argv = words[1:]
    run_main(plan.main)

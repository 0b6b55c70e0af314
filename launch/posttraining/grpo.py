"""Run GRPO with TRL's own trainer. `myllm posttrain grpo` writes X.yaml and starts this module.

    python -m launch.posttraining.grpo --config X.yaml

The file's keys are those of TRL's own script (`trl grpo --config X.yaml` reads the same file): GRPOConfig, ModelConfig,
`dataset_name`, `reward_funcs`, `reward_model_name_or_path`. Unlike that script, this module resumes from the newest
checkpoint, evaluates before the first and after the last step, prints progress, and writes its results to the same
files as LLaMA-Factory (trainer_state.json, train_results.json).
Method: Shao et al. 2024, arXiv 2402.03300.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from artifacts.errors import run_main
from launch.posttraining.rewards import load


def named(reward: Any, name: str) -> Any:
    """Give a reward function its dotted name: TRL logs it by `__name__`, which two modules may share."""

    def judge(**columns: Any) -> list[float | None]:
        return reward(**columns)

    judge.__name__ = name
    return judge


def rewards_of(script: Any) -> list[Any]:
    """The reward model's folder and the reward functions, in TRL's order; a name without a dot is one of TRL's own."""
    from trl.scripts.grpo import reward_funcs_registry

    found = [script.reward_model_name_or_path] if script.reward_model_name_or_path else []
    for name in script.reward_funcs or []:
        found.append(reward_funcs_registry[name] if "." not in name else named(load(name), name))
    return found


def progress_callback() -> Any:
    """A callback that prints `progress N/M steps`, at most once a second."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        shown = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            last = state.global_step == state.max_steps
            if state.is_world_process_zero and (last or time.monotonic() - self.shown >= 1.0):
                self.shown = time.monotonic()
                print(f"progress {state.global_step}/{state.max_steps} steps", flush=True)

    return Progress()


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    from datasets import load_dataset
    from transformers.trainer_utils import get_last_checkpoint
    from trl import GRPOTrainer, get_peft_config
    from trl.scripts.grpo import make_parser

    script, training, model, _ = make_parser().parse_args_and_config(arguments)
    data = load_dataset(script.dataset_name)
    trainer = GRPOTrainer(
        model=model.model_name_or_path,
        reward_funcs=rewards_of(script),
        args=training,
        train_dataset=data[script.dataset_train_split],
        eval_dataset=data[script.dataset_test_split],
        callbacks=[progress_callback()],
        peft_config=get_peft_config(model),
    )
    folder = Path(training.output_dir)
    newest = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    result = trainer.train(resume_from_checkpoint=newest)
    trainer.save_model()
    trainer.save_metrics("train", result.metrics, combined=False)
    if training.do_eval:
        trainer.evaluate()  # its results go to the log only, rewards included
    trainer.save_state()
    return 0


if __name__ == "__main__":
    run_main(main)

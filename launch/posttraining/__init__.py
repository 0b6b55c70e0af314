"""Post-training with LLaMA-Factory and TRL: SFT, LoRA, reward model, DPO, KTO, PPO, GRPO, merge.

Input: a recipe (llamafactory_configs/), a model folder, data files. Output: a checked model folder or adapter.
`posttrain` is the command. It passes a `job` through `recipe` (keys), `data` (rows), `work_folder`, `tool` (upstream
command), `metrics`, `chat_model` and `merge_gate`. `grpo` and `reward_server` run beside the tool; `rewards` has the
reward functions for GRPO. To add a method, write a YAML file of LLaMA-Factory's or TRL's keys. To add a reward, write a
function in any module and name it in the recipe.
"""

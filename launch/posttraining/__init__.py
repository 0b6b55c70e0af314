"""Post-training with LLaMA-Factory and TRL: SFT, LoRA, reward model, DPO, KTO, PPO, GRPO, merge.

In: a recipe (llamafactory_configs/), a model folder, data files. Out: a model folder or an adapter, gated.
`posttrain` is the command. It hands a `job` on: `recipe` (keys) -> `data` (rows) -> `work_folder` -> `tool` (the
upstream command) -> `metrics`, `chat_model`, `merge_gate`. `grpo` and `reward_server` run beside the tool; `rewards`
are what GRPO learns from. To add a method: a YAML file of LLaMA-Factory's or TRL's keys. To add a reward: a function in
any module, named in the recipe.
"""

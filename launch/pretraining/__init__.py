"""Pretraining with stock Megatron-LM.

In: a recipe (megatron_configs/), `tokenizer/` and `dataset/` of a run. Out: `checkpoints/`, `tensorboard/`.
`pretrain` turns a recipe into torchrun's command; `worker` is one rank of it. Before the start: `recipe` and
`served_flags` (keys), `flags` (Megatron's parser), `checkpoints` (what is there already), `estimate` (memory, hours).
In the rank: `dataset`, `data_check`, `loss_watch`, `attention`. Afterwards: `training_log`.
To add a recipe: a YAML file. To serve a flag of Megatron: take it out of `served_flags`.
"""

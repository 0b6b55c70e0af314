"""Pretraining with stock Megatron-LM.

Input: a recipe (megatron_configs/), `tokenizer/` and `dataset/` of a run. Output: `checkpoints/`, `tensorboard/`.
`pretrain` turns a recipe into torchrun's command; `worker` is one rank. Before the start: `recipe` and `served_flags`
check the keys, `flags` calls Megatron's parser, `checkpoints` checks existing checkpoints, `estimate` computes memory
and hours. In a rank: `dataset`, `data_check`, `loss_watch`, `attention`. Afterwards: `training_log`.
To add a recipe, write a YAML file. To support another flag of Megatron, remove it from `served_flags`.
"""

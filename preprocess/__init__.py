"""Turn published corpora into Megatron indexed datasets, with one small program per step."""

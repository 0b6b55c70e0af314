"""Corpora: from what publishers offer to Megatron indexed datasets, one small program per step."""

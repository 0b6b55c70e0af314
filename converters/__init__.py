"""Megatron checkpoints to Hugging Face folders, proved before they are handed on. One adapter file an architecture."""

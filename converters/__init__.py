"""Convert Megatron checkpoints to Hugging Face folders and back, with a numerical check of every conversion.

`export` and `import_hf` are the programs. An architecture is one file in `architectures`: a table of rules from
`rules` and its `config.json`. `checkpoint` and `safetensors_files` read and write the two formats one tensor at a time,
`vocabulary` computes the three vocabulary sizes, `parity` compares the logits of both sides.
"""

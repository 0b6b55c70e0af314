"""Megatron checkpoints to Hugging Face folders and back, proved before they are handed on.

`export` and `import_hf` are the programs. An architecture is one file in `architectures`: a table of rules from
`rules` and its `config.json`. `checkpoint` and `safetensors_files` read and write the two formats a tensor at a time,
`vocabulary` owns the three vocabulary sizes, `parity` is the gate.
"""

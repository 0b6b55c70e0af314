"""Train a tokenizer, and prove that every later tool reads the same ids.

In: JSON lines of text. Out: a Hugging Face folder with the special tokens and the chat template.
`train` is the command, `sample` chooses what it learns from, `probe` is the gate.
"""

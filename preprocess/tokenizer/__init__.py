"""Train a tokenizer, and verify that every later tool gives the same ids.

Input: JSON lines of text. Output: a Hugging Face folder with the special tokens and the chat template.
`train` is the command, `sample` chooses the training text, `probe` compares the tools' ids.
"""

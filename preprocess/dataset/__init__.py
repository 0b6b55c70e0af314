"""Documents to Megatron indexed datasets.

In: JSON lines of documents and a tokenizer. Out: `PREFIX.bin`, `PREFIX.idx`, `blend.json`.
`split` divides into train, valid, test; `binning` encodes (`encoding`) and writes (`indexed`); `blend` puts datasets
and their shares together, read back by Megatron's own reader.
"""

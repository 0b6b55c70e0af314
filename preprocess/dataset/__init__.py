"""Build Megatron indexed datasets from documents.

Input: JSON lines of documents and a tokenizer. Output: `PREFIX.bin`, `PREFIX.idx`, `blend.json`.
`split` divides documents into train, valid and test; `binning` encodes (`encoding`) and writes (`indexed`) them;
`blend` sets the weights of datasets, after checking each with Megatron's own reader.
"""

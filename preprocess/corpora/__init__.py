"""Turn raw files into clean, deduplicated shards with one command, a datatrove pipeline.

Input: raw files of a source. Output: shards of documents, and a data card.
`pipeline` is the command, for this machine or Slurm; `blocks` are its steps; `data_card` reports what each step did.
"""

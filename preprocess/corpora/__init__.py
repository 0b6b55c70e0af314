"""Turn raw files into clean, deduplicated shards with one command, a datatrove pipeline.

Input: raw files of a source. Output: shards of documents, and a data card.
`pipeline` is the command, for this machine or Slurm; `blocks` are its steps, `keep` is the one by a corpus's own score;
`data_card` reports what each step did.
"""

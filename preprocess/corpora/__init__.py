"""From raw files to clean, deduplicated shards in one command: a datatrove pipeline.

In: raw files of a source. Out: shards of documents, and a data card.
`pipeline` is the command, on this machine or on Slurm; `blocks` are its steps; `data_card` counts what each did.
"""

"""Documents that stand in the corpus already, or in an evaluation set.

In: JSON lines of documents. Out: the same without them.
`deduplicate` is the command for one file, `minhash` finds near duplicates in bounded memory, `decontaminate` drops
what holds evaluation questions.
"""

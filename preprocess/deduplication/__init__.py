"""Drop duplicate documents, and documents that share text with an evaluation set.

Input: JSON lines of documents. Output: the kept documents.
`deduplicate` is the command for one file, `minhash` finds near duplicates in bounded memory, `decontaminate` drops
documents that contain evaluation questions.
"""

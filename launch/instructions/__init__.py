"""Read and check instruction, preference and KTO data in the published formats.

Input: JSON or JSON lines. Output: rows in one common format (`read`), and a list of faults (`lint`).
To add a format, add a reader to `read`; `lint` and post-training then support it.
"""

"""Read and check instruction, preference and KTO data in the published formats.

Input: JSON, JSON lines or Parquet. Output: rows in one common format (`read`), and a list of faults (`lint`).
`shapes` has a function for each published format, `tools` writes tool calls and thoughts as text. To add a format,
write such a function; `lint`, `split` and post-training then support it.
"""

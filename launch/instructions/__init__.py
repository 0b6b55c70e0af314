"""Instruction, preference and KTO data, as people publish them.

In: JSON or JSON lines. Out: one idea of a row (`read`), and a list of faults (`lint`).
To add a form: one more reader in `read`; `lint` and post-training know it then.
"""

"""Checks and measurements that need a GPU: `make proof-gpu`, at most eight minutes, no network.

    python -m benchmarks.gpu_proof                       # on a GPU, in the .venv of `make env-gpu`
    python -m benchmarks.gpu_proof --hardware cpu        # every part with tiny shapes on a CPU, as in the tests
    python3 -m benchmarks.gpu_proof --extra .proof-gpu   # with a Python that has its own CUDA torch; make the folder
                                                         # with `make proof-gpu-wheels` on a machine with a network

`__main__` runs the parts in order, each in separate processes and with its own time limit. A part yields rows. Each row
is written to `gpu.json` and `gpu.md` at once, so an interrupted run keeps its rows.

To add a part, write a function `part(proof, deadline)` that yields rows, add it to `parts` and LIMITS in `__main__`,
and add its table to SECTIONS in `results.py`.
"""

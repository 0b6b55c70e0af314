"""What one GPU shows that a CPU cannot: `make proof-gpu`, at most eight minutes, no network.

    python -m benchmarks.gpu_proof                       # on a GPU, in the .venv of `make env-gpu`
    python -m benchmarks.gpu_proof --hardware cpu        # every part with tiny shapes on a CPU: the tests do this
    python3 -m benchmarks.gpu_proof --extra .proof-gpu   # with a Python that has its own CUDA torch; the folder is
                                                         # made by `make proof-gpu-wheels` where there is a network

`__main__` runs the parts in order, each in processes of its own and within its own time limit. A part gives rows;
each row is written to `gpu.json` and `gpu.md` as soon as it is known, so a run that is cut short keeps what it has.

To add a part: a module with `run(proof, deadline)` that yields rows, one line in `__main__.PARTS`, and its table in
`results.py`.
"""

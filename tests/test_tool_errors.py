"""The error that a tool failed with, in what real tools print."""

import pytest

from artifacts.tool_errors import FirstError

# LLaMA-Factory with torchrun where DeepSpeed is not installed: what the user saw was torchrun's line
TORCHRUN = """[INFO|2026] started
Traceback (most recent call last):
  File "/x/llamafactory/launcher.py", line 23, in <module>
    launch()
  File "/x/transformers/integrations/deepspeed.py", line 79, in __init__
    raise ImportError(
ImportError: DeepSpeed is not available => install it using `pip3 install deepspeed`
E0000 torch/distributed/elastic/multiprocessing/api.py:874] failed (exitcode: 1)
Traceback (most recent call last):
  File "/x/bin/torchrun", line 10, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
Traceback (most recent call last):
  File "/x/bin/llamafactory-cli", line 10, in <module>
    sys.exit(main())
  File "/usr/lib/python3.11/subprocess.py", line 571, in run
    raise CalledProcessError(retcode, process.args,
subprocess.CalledProcessError: Command '['torchrun', '--nnodes', '1']' returned non-zero exit status 1.
"""
# Megatron: rank 1 loses its peer and is printed first
RANKS = """[rank1]: Traceback (most recent call last):
[rank0]: Traceback (most recent call last):
[rank1]:   File "/x/worker.py", line 200, in <module>
[rank0]:   File "/x/worker.py", line 54, in forward_step
[rank1]: RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]
[rank0]:     sample = next(iterator)
[rank0]: StopIteration
"""
# torchrun on a CPU: Linux kills rank 0 when memory runs out; rank 1 then loses its peer, and only rank 1 prints
OUT_OF_MEMORY = """[rank1]: Traceback (most recent call last):
[rank1]:   File "/x/worker.py", line 200, in <module>
[rank1]: RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]
E0000 torch/distributed/elastic/multiprocessing/api.py:1012] failed (exitcode: -9) local_rank: 0 (pid: 3457) of binary
Traceback (most recent call last):
  File "/x/bin/torchrun", line 10, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""
CHAINED = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'qwen4'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 2, in <module>
ValueError: the checkpoint has model type qwen4, which this version does not know
"""


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (TORCHRUN, "ImportError: DeepSpeed is not available => install it using `pip3 install deepspeed`"),
        (RANKS, "StopIteration"),
        (OUT_OF_MEMORY, "rank 0 was killed (SIGKILL), as Linux does when memory runs out"),
        (CHAINED, "ValueError: the checkpoint has model type qwen4, which this version does not know"),
        ("all is well\n", ""),
        (RANKS.replace("[rank0]: StopIteration", ""), "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp"),
    ],
    ids=["torchrun", "ranks", "killed", "chained", "none", "only a lost peer"],
)
def test_the_tools_own_first_error(output: str, wanted: str) -> None:
    found = FirstError()
    for line in output.splitlines(keepends=True):
        found.feed(line)
    assert found.text == wanted or (wanted and found.text.startswith(wanted))

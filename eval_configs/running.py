"""How OpenCompass runs a suite: all sets of a model in one process, on this machine.

Alone, each of the 119 subjects of C-Eval and CMMLU would get a process of its own, 8 to 15 s each. `opencompass CONFIG
--slurm -p PARTITION` puts its own partitioner and runner in the place of these.
"""

from opencompass.partitioners import NaivePartitioner
from opencompass.runners import LocalRunner
from opencompass.tasks import OpenICLEvalTask, OpenICLInferTask

infer = dict(
    partitioner=dict(type=NaivePartitioner, n=1000), runner=dict(type=LocalRunner, task=dict(type=OpenICLInferTask))
)
eval = dict(
    partitioner=dict(type=NaivePartitioner, n=1000), runner=dict(type=LocalRunner, task=dict(type=OpenICLEvalTask))
)

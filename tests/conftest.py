"""What several test files share, and the order in which files are given to pytest-xdist's workers."""

import pytest
from slurm_cluster import slurm_cluster

# The files that take longest come first, so that no worker is left with one at the end (`--no-loadscope-reorder`).
LONGEST = (
    "test_rehearsal.py", "test_pipeline.py", "test_training.py", "test_gpu_proof.py", "test_posttrain_ppo.py",
    "test_converters.py", "test_evaluate_opencompass.py", "test_posttrain_llama2.py", "test_serve.py", "test_slurm.py",
    "test_posttrain_parallel.py", "test_posttrain_sft.py", "test_posttrain_preferences.py", "test_grpo.py",
    "test_serve_live.py", "test_posttrain_architectures.py", "test_every_step_on_bad_inputs.py", "test_contributing.py",
    "test_tokenizer.py", "test_served_flags.py", "test_evaluate.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def cluster():
    """The environment of a Slurm of four virtual nodes; the last tests of test_slurm_jobs.py take two away."""
    with slurm_cluster(4) as environment:
        yield {**environment, "HF_HUB_OFFLINE": "1"}

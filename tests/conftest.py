"""What several test files share."""

import pytest
from slurm_cluster import slurm_cluster


@pytest.fixture(scope="session")
def cluster():
    """The environment of a Slurm of four virtual nodes; the last tests of test_slurm_jobs.py take two away."""
    with slurm_cluster(4) as environment:
        yield {**environment, "HF_HUB_OFFLINE": "1"}

"""Many random lives of a cluster, new ones in every run; a failing one is printed as a short program."""

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.machine import ClusterMachine

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
TestManyRandomLives = ClusterMachine.TestCase
TestManyRandomLives.settings = settings(
    max_examples=10,
    stateful_step_count=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

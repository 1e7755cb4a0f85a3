"""A few random lives of a cluster; ``tests/integration/sessions`` has many more."""

from hypothesis import HealthCheck, settings

from tests.harness.machine import ClusterMachine

TestRandomLives = ClusterMachine.TestCase
TestRandomLives.settings = settings(
    max_examples=3,
    stateful_step_count=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

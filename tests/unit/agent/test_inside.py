"""The environment of containers, as labels of their image change it."""

from __future__ import annotations

from spawner.agent.engines.docker.inside import environment


def test_an_image_names_variables_for_the_count_of_cores() -> None:
    labels = {"ai.backend.envs.corecount": "NPROC, OPENBLAS_NUM_THREADS,MINE,"}
    given = {"OMP_NUM_THREADS": "3", "MINE": "1"}
    assert environment(labels, given) == {
        "NPROC": "3",
        "OPENBLAS_NUM_THREADS": "3",
        "OMP_NUM_THREADS": "3",
        "MINE": "1",
    }
    assert environment(labels, {}) == {}
    assert environment({}, given) == given

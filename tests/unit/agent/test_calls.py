"""Every question of the manager is answered, in a frame that it takes."""

from __future__ import annotations

import pytest

from spawner.agent.calls import Calls
from spawner.agent.engines.base import Identity
from spawner.agent.protocol import MAX_FRAME_BYTES, Call, encode
from tests.harness.engine import MemoryEngine
from tests.unit.agent.test_kernels import SPEC, Node


class Chatty(MemoryEngine):
    """Its kernels print what takes most room in a frame."""

    async def logs(self, identity: Identity, tail: int) -> str:
        return "\x00" * MAX_FRAME_BYTES + "the end"


async def test_the_log_of_a_kernel_fits_a_frame_whatever_it_prints() -> None:
    node = await Node(Chatty()).running()
    answer = await Calls(node.engine, node.kernels).answer(
        Call(1, "logs", {"kernel_id": SPEC.kernel_id})
    )
    assert answer.value.endswith("the end")
    assert len(encode(answer)) < MAX_FRAME_BYTES
    await node.kernels.close()


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"fault": KeyError("secret")}, "the node failed: KeyError"),
        ({"fault": PermissionError("secret")}, "the node failed: PermissionError"),
        ({"fault": ValueError("size is '-1'")}, "size is '-1'"),
        ({"value": "x" * MAX_FRAME_BYTES}, "the answer has "),
        ({"value": object()}, "the node failed: TypeError"),
    ],
)
async def test_a_fault_is_an_answer_too(
    params: dict[str, object], error: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(MemoryEngine())
    calls = Calls(node.engine, node.kernels)

    async def method(given: object) -> object:
        if isinstance(fault := params.get("fault"), Exception):
            raise fault
        return params["value"]

    calls.offer("try", method)
    answer = await calls.answer(Call(1, "try", {}))
    assert answer.error is not None
    assert answer.error.startswith(error)
    assert ("secret" in caplog.text) is ("secret" in str(params))

"""Images of the cluster: who may use them, how they get to nodes, and images made of sessions."""

from __future__ import annotations

import pytest

from authenticator.principals import Principal, Role
from authenticator.problems import (
    AgentUnavailable,
    BadRequest,
    Forbidden,
    InvalidParameters,
    NotFound,
    QuotaExceeded,
)
from spawner.agent.protocol import Call, ImagePull, ImageReport
from spawner.sessions.image_rows import COMMIT_LABEL, OWN_HOST, OWNER_LABEL
from spawner.sessions.tables import CommitRow
from tests.harness.agent import IMAGE, LABELS, FakeAgent
from tests.harness.plane import REQUEST, Rig, until

DIGEST = f"sha256:{'a' * 64}"


async def root(plane: Rig) -> Principal:
    return await plane.user("root", role=Role.SUPERADMIN)


async def made(plane: Rig, agent: FakeAgent, owner: Principal, commit: CommitRow) -> None:
    """The node has written the image, and says so."""
    labels = {**LABELS, COMMIT_LABEL: str(commit.id), OWNER_LABEL: owner.user_id.hex}
    agent.images = (*agent.images, commit.image)
    there = [ImageReport(IMAGE, "x86_64", None, 1, LABELS)]
    agent.beat(images=(*there, ImageReport(commit.image, "x86_64", None, 7, labels)))
    service = plane.plane.images

    async def names() -> list[str]:
        return [view.row.name for view in await service.list(owner)]

    await until(names, lambda found: commit.image in found)


async def test_credentials_and_the_approved_digest_go_with_the_kernel(plane: Rig) -> None:
    agent = await plane.agent(FakeAgent(images=("registry.example.org/team/lab:1",)))
    admin, ada = await root(plane), await plane.user()
    given = {"name": "registry.example.org", "username": "puller", "password": "secret"}
    shown = await plane.plane.administration.create(admin, "registries", given, REQUEST)
    assert shown["password"] == "(set)"
    service = plane.plane.images
    name = "registry.example.org/team/lab:1"
    await service.update(admin, name, enabled=None, digest=DIGEST, request_id=REQUEST)
    await plane.run(ada, image=name)
    (kernel,) = agent.kernels.values()
    assert kernel.spec.pull == ImagePull("puller", "secret", DIGEST)
    await service.update(admin, name, enabled=False, digest="", request_id=REQUEST)
    with pytest.raises(NotFound):
        await plane.create(ada, image=name)


async def test_administrators_have_nodes_pull(plane: Rig) -> None:
    agent = await plane.agent()
    admin = await root(plane)
    service = plane.plane.images
    await service.pull(admin, "example.org/lab:2", [])
    assert agent.calls[-1].method == "pull_image"
    assert agent.calls[-1].params["name"] == "example.org/lab:2"
    agent.image_tasks = [
        {"what": "pull", "name": "example.org/lab:2", "state": "running", "message": "7 of 9 MB"}
    ]
    assert (await service.tasks(admin, "example.org/lab:2"))["node-1"]["message"] == "7 of 9 MB"
    with pytest.raises(InvalidParameters) as caught:
        await service.pull(admin, "example.org/lab:2", ["elsewhere"])
    assert "elsewhere: no live node" in str(caught.value.data)
    with pytest.raises(Forbidden):
        await service.pull(await plane.user(), "example.org/lab:2", [])


class Waiting(FakeAgent):
    """Answers once all of its kind were asked."""

    def answer(self, call: Call) -> None:
        ASKED.append((self, call))
        if len({agent.agent_id for agent, _ in ASKED}) == 2:
            for agent, each in ASKED:
                FakeAgent.answer(agent, each)


ASKED: list[tuple[FakeAgent, Call]] = []


async def test_a_silent_node_holds_up_no_other(plane: Rig) -> None:
    ASKED.clear()
    for name in ("node-1", "node-2"):
        await plane.agent(Waiting(name))
    told = await plane.plane.images.pull(await root(plane), "example.org/lab:2", [])
    assert told == {"node-1": None, "node-2": None}, "none of them failed"


async def test_a_session_becomes_an_image_of_its_owner_alone(plane: Rig) -> None:
    await plane.agent()
    await plane.agent(FakeAgent("node-2"))
    ada, bob = await plane.user(), await plane.user("bob")
    first = await plane.run(ada, name="Analysis_1")
    service = plane.plane.images
    with pytest.raises(NotFound):
        await service.commit(bob, str(first.session.id), None, REQUEST)
    commit = await service.commit(ada, str(first.session.id), None, REQUEST)
    assert commit.image == f"{OWN_HOST}/{ada.user_id.hex}/analysis-1:latest"
    holder = next(each for each in plane.agents if each.calls)
    assert holder.calls[-1].params["labels"][OWNER_LABEL] == ada.user_id.hex
    holder.image_tasks = [
        {"what": "commit", "name": commit.image, "state": "running", "message": ""}
    ]
    with pytest.raises(BadRequest, match="being made already"):
        await service.commit(ada, str(first.session.id), "other", REQUEST)
    await made(plane, holder, ada, commit)
    status = await service.commit_status(ada, str(first.session.id), REQUEST)
    assert status is not None
    assert status.status == "done"
    again = await plane.run(ada, image=commit.image)
    assert again.session.designated_agents == []  # no user sees names of agents
    ours = [kernel for kernel in holder.kernels.values() if kernel.spec.image == commit.image]
    assert len(ours) == 1
    with pytest.raises(NotFound):
        await plane.create(bob, image=commit.image)
    assert commit.image not in [view.row.name for view in await service.list(bob)]


async def test_nobody_gets_anothers_image_by_asking_for_a_pull(plane: Rig) -> None:
    await plane.agent()
    ada, bob = await plane.user(), await plane.user("bob")
    given = {"options": {"allow_pull": True}}
    admin = await root(plane)
    await plane.plane.administration.update(admin, "resource-groups", "default", given, REQUEST)
    for name in (f"{OWN_HOST}/{ada.user_id.hex}/secret:latest",):
        with pytest.raises(NotFound):
            await plane.create(bob, image=name)


async def test_a_label_alone_makes_no_owner(plane: Rig) -> None:
    """Anybody can build an image with our labels; only a commit that we asked for counts."""
    agent = await plane.agent()
    ada = await plane.user()
    name = f"{OWN_HOST}/{ada.user_id.hex}/forged:latest"
    labels = {**LABELS, COMMIT_LABEL: "not-a-uuid", OWNER_LABEL: ada.user_id.hex}
    agent.beat(images=(ImageReport(name, "x86_64", None, 1, labels),))

    async def views() -> list[str | None]:
        found = await plane.plane.images.list(await root(plane), name)
        return [str(view.row.owner_id) for view in found]

    assert await until(views, bool) == ["None"]


async def test_the_number_of_own_images_is_limited(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    await plane.user_policy(max_customized_image_count=1)
    session = await plane.run(ada)
    service = plane.plane.images
    commit = await service.commit(ada, str(session.session.id), "one", REQUEST)
    await made(plane, agent, ada, commit)
    with pytest.raises(QuotaExceeded, match="you have 1 images made of sessions and may have 1"):
        await service.commit(ada, str(session.session.id), "two", REQUEST)
    replaced = await service.commit(ada, str(session.session.id), "one", REQUEST)
    assert replaced.image == commit.image


async def test_an_image_goes_from_all_nodes_once_nobody_uses_it(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    session = await plane.run(ada)
    service = plane.plane.images
    commit = await service.commit(ada, str(session.session.id), "mine", REQUEST)
    await made(plane, agent, ada, commit)
    user = await plane.run(ada, image=commit.image)
    with pytest.raises(BadRequest, match="1 live sessions use"):
        await service.remove(ada, commit.image, REQUEST)
    with pytest.raises(NotFound):
        await service.remove(ada, IMAGE, REQUEST)
    await plane.destroy(ada, user)
    await plane.wait(
        user, *{status for status in type(user.status) if status.value == "TERMINATED"}
    )
    answer = await service.remove(ada, commit.image, REQUEST)
    assert answer == {"removed": ["node-1"], "failed": {}}
    assert agent.calls[-1].method == "remove_image"
    with pytest.raises(NotFound):
        await service.remove(ada, commit.image, REQUEST)


async def test_a_commit_that_nobody_knows_of_any_more_has_failed(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    session = await plane.run(ada)
    service = plane.plane.images
    await service.commit(ada, str(session.session.id), "mine", REQUEST)
    agent.image_tasks = []
    status = await service.commit_status(ada, str(session.session.id), REQUEST)
    assert status is not None
    assert (status.status, status.message) == ("failed", "its node was started again")
    await agent.disconnect()
    with pytest.raises(AgentUnavailable):
        await service.commit(ada, str(session.session.id), "mine", REQUEST)
    status = await service.commit_status(ada, str(session.session.id), REQUEST)
    assert status is not None
    assert status.status == "failed"


async def test_a_commit_whose_node_stays_away_holds_up_no_other(plane: Rig) -> None:
    agent = await plane.agent()
    ada = await plane.user()
    await plane.user_policy(max_customized_image_count=1)
    session = await plane.run(ada)
    service, ref = plane.plane.images, str(session.session.id)
    await service.commit(ada, ref, "one", REQUEST)
    with pytest.raises(BadRequest, match="is being made already"):
        await service.commit(ada, ref, "two", REQUEST)
    await agent.disconnect()
    status = await service.commit_status(ada, ref, REQUEST)
    assert status is not None
    assert status.status == "ongoing"
    plane.clock.forward(3601)
    with pytest.raises(AgentUnavailable):
        await service.commit(ada, ref, "two", REQUEST)
    status = await service.commit_status(ada, ref, REQUEST)
    assert status is not None
    assert status.status == "failed"

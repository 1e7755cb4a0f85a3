"""What a session that starts finds of its owner: dotfiles, a bootstrap script, a key for SSH."""

import uuid

import pytest

from authenticator.dotfiles import Dotfile, DotfileService
from authenticator.principals import Principal, Role
from authenticator.problems import InvalidParameters
from authenticator.sshkeys import SshKeyService
from spawner.agent.protocol import KernelSpec
from spawner.sessions import personal
from spawner.sessions.states import Status
from tests.harness.agent import SlowAgent
from tests.harness.plane import REQUEST, Rig, until


async def handed(agent: SlowAgent, count: int) -> list[KernelSpec]:
    async def look() -> int:
        return len(agent.kernels)

    await until(look, lambda found: found >= count)
    return [kernel.spec for kernel in agent.kernels.values()]


async def keep(plane: Rig, owner: Principal, *files: Dotfile) -> None:
    dotfiles = DotfileService(plane.store)
    for each in files:
        await dotfiles.create(dotfiles.of_user(owner, owner, write=True), each)


async def test_a_session_finds_what_its_owner_keeps(plane: Rig) -> None:
    agent = SlowAgent()
    await plane.agent(agent)
    ada, root = await plane.user(), await plane.user("root", Role.SUPERADMIN)
    dotfiles = DotfileService(plane.store)
    everybody = dotfiles.of_domain(root, "default", write=True)
    await dotfiles.create(everybody, Dotfile(".motd", "444", "welcome"))
    await keep(plane, ada, Dotfile(".bashrc", "640", "set -o vi"))
    await dotfiles.set_bootstrap_script(ada, "echo mine")
    public, private = await SshKeyService(plane.store).generate(ada)
    await plane.create(ada, name="first")
    (spec,) = await handed(agent, 1)
    found = {file.path: (file.content, file.mode) for file in spec.files}
    assert found == {
        "dotfiles/.motd": ("welcome", 0o444),
        "dotfiles/.bashrc": ("set -o vi", 0o640),
        "bootstrap": ("echo mine", 0o700),
        "ssh/authorized_keys": (f"{public}\n", 0o600),
    }
    assert spec.bootstrap == "bootstrap"
    assert private not in str(spec)
    await plane.create(ada, name="second", bootstrap_script="echo own")
    specs = {spec.session_name: spec for spec in await handed(agent, 2)}
    own = {file.path: file.content for file in specs["second"].files}
    assert own["bootstrap"] == "echo own"


async def test_a_cluster_lets_its_own_keys_and_its_owners_in(plane: Rig) -> None:
    agent = SlowAgent(features={"clusters": True})
    await plane.agent(agent)
    ada = await plane.user()
    await plane.policy(max_containers_per_session=2)
    public, _ = await SshKeyService(plane.store).generate(ada)
    await plane.create(ada, cluster_size=2)
    for spec in await handed(agent, 2):
        files = {file.path: file.content for file in spec.files}
        keys = files["ssh/authorized_keys"].splitlines()
        assert keys == [files["ssh/id_cluster.pub"].strip(), public]


async def test_files_of_many_starts_fit_a_frame(
    plane: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = SlowAgent()
    await plane.agent(agent)
    ada = await plane.user()
    await keep(plane, ada, Dotfile(".big", "644", "x" * 60_000))
    monkeypatch.setattr(personal, "FILES_AT_ONCE", 130_000)
    made = [await plane.create(ada) for _ in range(3)]
    await handed(agent, 2)
    waiting = [each for each in made if each.session.id not in started(agent)]

    async def statuses() -> list[Status]:
        details = [await plane.plane.sessions.get(ada, str(d.session.id)) for d in made]
        return sorted(detail.status for detail in details)

    await until(statuses, lambda found: found.count(Status.PREPARING) == 2)
    assert len(waiting) == 1
    agent.finish()
    await handed(agent, 3)
    agent.finish()
    assert (await plane.wait(waiting[0])).status is Status.RUNNING


def started(agent: SlowAgent) -> set[object]:
    return {uuid.UUID(kernel.spec.session_id) for kernel in agent.kernels.values()}


@pytest.mark.parametrize(
    ("group", "policy", "profile"),
    [
        (None, None, None),
        ("own", None, "own"),
        (None, "strict", "strict"),
        ("own", "strict", "strict"),
        ("strict", "own", "strict"),
        ("default", "own", "own"),
    ],
)
async def test_a_policy_makes_the_profile_stricter(
    plane: Rig, group: str | None, policy: str | None, profile: str | None
) -> None:
    ada, root = await plane.user(), await plane.user("root", Role.SUPERADMIN)
    update = plane.plane.administration.update
    await update(root, "resource-groups", "default", {"options": {"seccomp": group}}, REQUEST)
    await update(root, "keypair-policies", "default", {"seccomp": policy}, REQUEST)
    await plane.agent(SlowAgent())
    detail = await plane.create(ada)
    assert (await plane.kernel(detail)).spec.get("seccomp") == profile


async def test_profiles_that_cannot_be_combined(plane: Rig) -> None:
    ada, root = await plane.user(), await plane.user("root", Role.SUPERADMIN)
    update = plane.plane.administration.update
    await update(root, "resource-groups", "default", {"options": {"seccomp": "one"}}, REQUEST)
    await update(root, "keypair-policies", "default", {"seccomp": "two"}, REQUEST)
    await plane.agent(SlowAgent())
    with pytest.raises(InvalidParameters) as raised:
        await plane.create(ada)
    assert "one and two are both demanded" in raised.value.fields["config.scalingGroup"]
    with pytest.raises(InvalidParameters):
        await update(root, "keypair-policies", "default", {"seccomp": "no such"}, REQUEST)

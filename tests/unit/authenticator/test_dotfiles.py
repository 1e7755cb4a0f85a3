"""Dotfiles: whose they are, what they may be called, how many, and which counts; keys for SSH."""

import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from authenticator.dotfiles import (
    Dotfile,
    DotfileCreationFailed,
    DotfileExists,
    DotfileService,
    Owner,
    effective,
)
from authenticator.identity import IdentityService
from authenticator.principals import Principal, Role, Scope, Via
from authenticator.problems import Forbidden, InvalidParameters, NotFound
from authenticator.sshkeys import SshKeyService, new_pair
from store.database import Store
from tests.unit.authenticator.conftest import facts_of


@pytest_asyncio.fixture(loop_scope="session")
async def ada(identity: IdentityService) -> Principal:
    await identity.create_user("ada")
    return await identity.principal_by_username("ada", Via.KEYPAIR)


@pytest.fixture
def dotfiles(store: Store) -> DotfileService:
    return DotfileService(store)


@pytest.fixture
def mine(dotfiles: DotfileService, ada: Principal) -> Owner:
    return dotfiles.of_user(ada, ada, write=True)


def admin(of: Principal) -> Principal:
    return replace(of, user_id=uuid.uuid4(), username="root", role=Role.ADMIN)


async def test_they_are_kept_changed_and_forgotten(dotfiles: DotfileService, mine: Owner) -> None:
    await dotfiles.create(mine, Dotfile("/home/work/.bashrc", "644", "one"))
    assert await dotfiles.list(mine) == [Dotfile(".bashrc", "644", "one")]
    with pytest.raises(DotfileExists, match=r"\.bashrc"):
        await dotfiles.create(mine, Dotfile(".bashrc", "644", "two"))
    await dotfiles.update(mine, Dotfile(".bashrc", "600", "two"))
    assert await dotfiles.get(mine, "/home/work/.bashrc") == Dotfile(".bashrc", "600", "two")
    await dotfiles.delete(mine, ".bashrc")
    for gone in (dotfiles.get(mine, ".bashrc"), dotfiles.delete(mine, ".bashrc")):
        with pytest.raises(NotFound) as raised:
            await gone
        assert raised.value.problem_title == "No such dotfile."
    with pytest.raises(NotFound):
        await dotfiles.update(mine, Dotfile(".bashrc", "600", "x"))


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/etc/passwd", "../x", "a/../b", "./a", "a//b", "a/", "a\nb", "x" * 256),
        *("a/" * 512 + "a", ".ssh", ".config", "/home/work/.ssh/authorized_keys"),
        *(".local/state/perijove/dotfiles/x", ".local/state", ".ssh/authorized_keys/x"),
    ],
)
async def test_paths_that_are_none(dotfiles: DotfileService, mine: Owner, path: str) -> None:
    with pytest.raises(InvalidParameters) as raised:
        await dotfiles.create(mine, Dotfile(path, "644", ""))
    assert set(raised.value.fields) == {"path"}


@pytest.mark.parametrize("permission", ["", "64", "888", "0644", "+44", "044", "٦٤٤"])
async def test_permissions_that_are_none(
    dotfiles: DotfileService, mine: Owner, permission: str
) -> None:
    with pytest.raises(InvalidParameters, match="validation") as raised:
        await dotfiles.create(mine, Dotfile(".x", permission, ""))
    assert set(raised.value.fields) == {"permission"}


async def test_a_file_is_no_folder(dotfiles: DotfileService, mine: Owner) -> None:
    await dotfiles.create(mine, Dotfile(".a/b", "644", ""))
    for path in (".a", ".a/b/c"):
        with pytest.raises(InvalidParameters):
            await dotfiles.create(mine, Dotfile(path, "644", ""))


async def test_their_number_and_size_are_limited(dotfiles: DotfileService, mine: Owner) -> None:
    with pytest.raises(DotfileCreationFailed, match="65538 bytes in all: at most 65536"):
        await dotfiles.create(mine, Dotfile(".x", "644", "x" * 65536))
    await dotfiles.create(mine, Dotfile(".x", "644", "é" * 32000))
    with pytest.raises(DotfileCreationFailed, match="at most 65536"):
        await dotfiles.create(mine, Dotfile(".y", "644", "x" * 2000))
    with pytest.raises(DotfileCreationFailed, match="at most 65536"):
        await dotfiles.update(mine, Dotfile(".x", "644", "x" * 65536))
    for number in range(99):
        await dotfiles.create(mine, Dotfile(f".f{number}", "644", ""))
    with pytest.raises(DotfileCreationFailed, match="at most 100"):
        await dotfiles.create(mine, Dotfile(".one-more", "644", ""))


async def test_the_nearer_owner_counts(
    dotfiles: DotfileService, identity: IdentityService, store: Store, ada: Principal, mine: Owner
) -> None:
    root = admin(ada)
    project = (await facts_of(store, ada)).projects[0]
    domain = dotfiles.of_domain(root, "default", write=True)
    team = await dotfiles.of_project(root, "default", None, write=True)
    for owner, name, paths in (
        (domain, "domain", (".all", ".two", ".deep/file", ".flat")),
        (team, "project", (".all", ".two", ".flat/x")),
        (mine, "user", (".all", ".deep")),
    ):
        for path in paths:
            await dotfiles.create(owner, Dotfile(path, "644", name))
    found = await store.read(lambda db: effective(db, ada.user_id, project.id, "default"))
    assert {each.path: each.data for each in found} == {
        ".all": "user",
        ".two": "project",
        ".deep": "user",
        ".flat/x": "project",
    }


async def test_who_may_see_and_write_them(dotfiles: DotfileService, ada: Principal) -> None:
    project = await dotfiles.of_project(ada, "default", "default", write=False)
    assert await dotfiles.list(project) == []
    assert (await dotfiles.of_project(ada, str(project.key), None, write=False)) == project
    refused: list[Callable[[], Owner]] = [
        lambda: dotfiles.of_domain(ada, "default", write=True),
        lambda: dotfiles.of_domain(admin(ada), "other", write=True),
        lambda: dotfiles.of_domain(ada, "other", write=False),
        lambda: dotfiles.of_user(ada, admin(ada), write=False),
        lambda: dotfiles.of_user(replace(ada, scopes=frozenset()), ada, write=False),
        lambda: dotfiles.of_user(
            replace(ada, scopes=frozenset({Scope.SESSIONS_READ})), ada, write=True
        ),
    ]
    for ask in refused:
        with pytest.raises(Forbidden):
            ask()
    with pytest.raises(Forbidden):
        await dotfiles.of_project(ada, "default", None, write=True)
    stranger = replace(ada, user_id=uuid.uuid4())
    for actor, name in ((stranger, "default"), (ada, "nosuch"), (ada, str(uuid.uuid4()))):
        with pytest.raises(NotFound):
            await dotfiles.of_project(actor, name, None, write=False)
    superadmin = replace(admin(ada), role=Role.SUPERADMIN)
    with pytest.raises(NotFound, match="no domain 'other'"):
        await dotfiles.list(dotfiles.of_domain(superadmin, "other", write=True))


async def test_a_bootstrap_script_is_kept(dotfiles: DotfileService, ada: Principal) -> None:
    assert await dotfiles.bootstrap_script(ada) == ""
    await dotfiles.set_bootstrap_script(ada, "echo hello")
    assert await dotfiles.bootstrap_script(ada) == "echo hello"
    with pytest.raises(InvalidParameters, match="validation"):
        await dotfiles.set_bootstrap_script(ada, "é" * 8193)
    await dotfiles.set_bootstrap_script(ada, "")
    assert await dotfiles.bootstrap_script(ada) == ""


async def test_keys_for_ssh(store: Store, ada: Principal) -> None:
    keys = SshKeyService(store)
    assert await keys.get(ada) == ""
    public, private = await keys.generate(ada)
    assert public.startswith("ssh-ed25519 ")
    assert public.endswith(" ada@perijove")
    assert "OPENSSH PRIVATE KEY" in private
    assert await keys.get(ada) == public
    rsa = generate_private_key(65537, 2048)
    own = rsa.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    pem = rsa.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    assert await keys.replace(ada, f"{own} me@home\n", pem) == f"{own} me@home"
    assert await keys.replace(ada, public, None) == await keys.get(ada)
    for key, secret, field in (
        ("", None, "pubkey"),
        ("ssh-rsa AAAA", None, "pubkey"),
        (f'command="x" {own}', None, "pubkey"),
        (f"{own}\n{own}", None, "pubkey"),
        (private, None, "pubkey"),
        (own, "nonsense", "privkey"),
        (own, new_pair("")[1], "privkey"),
    ):
        with pytest.raises(InvalidParameters) as raised:
            await keys.replace(ada, key, secret)
        assert set(raised.value.fields) == {field}
        assert "PRIVATE KEY-----\nb3" not in str(raised.value.fields)
    with pytest.raises(Forbidden):
        await keys.generate(replace(ada, scopes=frozenset({Scope.SESSIONS_READ})))

"""Files of sessions over HTTP: for others the session does not exist, and wrong input is named."""

from __future__ import annotations

from collections.abc import Iterable

from hub.api.session_files import MOST_UPLOADED
from spawner.sessions.files import MOST_FILES
from tests.harness.plane import REQUEST
from tests.unit.api.server import HUB_SECRET, Answer, Api

OWNER = "amy-of-files"


def form(names: Iterable[str], content: bytes = b"x") -> bytes:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="src"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name in names
    ]
    return b"".join(parts) + b"--b--\r\n"


async def upload(
    api: Api,
    path: str,
    body: bytes,
    user: str = OWNER,
    kind: str = "multipart/form-data; boundary=b",
) -> Answer:
    headers = {
        "Authorization": f"Bearer {HUB_SECRET}",
        "X-Perijove-User": user,
        "Content-Type": kind,
    }
    return await api.send("POST", f"{path}/upload", raw=body, headers=headers)


async def test_files_are_for_the_owner_and_within_bounds(api: Api) -> None:
    owner = await api.principal(OWNER)
    detail = await api.plane.wait(await api.plane.create(owner, name="with-files"))
    path = f"/session/{detail.session.id}"
    await api.principal("eve-of-files")
    try:
        for method, place, body in (
            ("GET", f"{path}/files", None),
            ("GET", f"{path}/download", {"files": ["a"]}),
            ("POST", f"{path}/download", {"files": ["a"]}),
            ("GET", f"{path}/download_single?file=a", None),
        ):
            answer = await api.hub(method, place, body, "eve-of-files")
            assert (answer.status, answer.problem) == (404, "object-not-found"), place
        answer = await upload(api, path, form(["a"]), "eve-of-files")
        assert (answer.status, answer.problem) == (404, "object-not-found")
        for method, place, body, field in (
            ("GET", f"{path}/download", None, "files"),
            ("GET", f"{path}/download", {"files": []}, "files"),
            ("GET", f"{path}/download", {"files": ["x"] * (MOST_FILES + 1)}, "files"),
            ("GET", f"{path}/download", {"files": [""]}, "files.0"),
            ("GET", f"{path}/download_single", None, "file"),
        ):
            answer = await api.hub(method, place, body, OWNER)
            assert (answer.status, answer.problem) == (400, "invalid-api-params")
            assert field in answer.body["data"], answer.body
        for content in (form([]), form(map(str, range(MOST_FILES + 1))), b"x"):
            answer = await upload(api, path, content)
            assert (answer.status, answer.problem) == (400, "invalid-api-params")
            assert list(answer.body["data"]) == ["src"]
        for name in ("../x", "/etc/x", "a/../../x", "a%2F..%2Fx", "a/", "a%0Ab"):
            answer = await upload(api, path, form([name]))
            assert (answer.status, list(answer.body["data"])) == (400, ["src"]), name
        assert (await upload(api, path, b"{}", kind="application/json")).status == 400
        much = await upload(api, path, form(["a"], bytes(MOST_UPLOADED)))
        assert much.status == 413
        other = await api.hub(
            "GET", f"{path}/files?owner_access_key=AKIAXXXXXXXXXXXXXXXX", user=OWNER
        )
        assert other.status == 403
    finally:
        await api.plane.plane.sessions.destroy(
            owner, str(detail.session.id), forced=True, request_id=REQUEST
        )
    await api.plane.wait(detail)
    ended = await api.hub("GET", f"{path}/files", user=OWNER)
    assert (ended.status, ended.problem) == (400, "generic-bad-request")

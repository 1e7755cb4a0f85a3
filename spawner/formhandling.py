"""The Spawner's side of the spawn form and of ``user_options``: render, read, accept."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateNotFound

from authenticator.problems import InvalidParameters
from spawner import options
from spawner.client import Refusal, Unreachable
from spawner.form import Entered, entered, view
from spawner.starting import StartRefused, invalid_options, refused

if TYPE_CHECKING:
    from spawner.spawner import PerijoveSpawner

_missing_templates: set[str] = set()


async def render(spawner: PerijoveSpawner) -> str:
    """The content of the spawn form; nothing when its template is not to be found."""
    environment = spawner.user.settings.get("jinja2_env")
    name = spawner.form_template
    if not name or environment is None:
        return ""
    try:
        template = environment.get_template(name)
    except TemplateNotFound:
        if name not in _missing_templates:
            _missing_templates.add(name)
            spawner.log.warning(
                "No template %s: servers start without a form. Add hub.web.template_paths()"
                " to JupyterHub.template_paths.",
                name,
            )
        return ""
    offer: dict[str, Any] | None
    try:
        offer = await spawner.manager.spawn_options(spawner.user.name)
    except (Unreachable, Refusal) as error:
        spawner.log.warning("No spawn options for %s: %s", spawner._log_name, error)
        offer = None
    labels, bounds = await spawner.image_labels(), await spawner.bounds()
    form = view(offer, bounds, spawner.user_options, entered.get(), spawner.image, labels)
    return str(
        await template.render_async(
            form=form,
            spawner=spawner,
            user_name=spawner.user.escaped_name,
            base_url=spawner.hub.base_url,
        )
    )


def posted(formdata: Mapping[str, Any], spawner: PerijoveSpawner) -> Awaitable[dict[str, Any]]:
    """``user_options`` of a posted form. Raises ``StartRefused`` for what is wrong or can never run.

    Not a coroutine: what was entered must be remembered in the context of the handler, which renders the
    form again (with another spawner object) when this raises.
    """
    remembered = Entered(dict(formdata))
    entered.set(remembered)
    return _read(spawner, remembered)


async def _read(spawner: PerijoveSpawner, remembered: Entered) -> dict[str, Any]:
    if options.AGAIN in remembered.fields:
        return _last(spawner)
    try:
        chosen = options.from_form(remembered.fields)
        offer = await spawner.manager.spawn_options(spawner.user.name)
        await spawner.accepted(options.parse(chosen), offer)
    except InvalidParameters as problem:
        remembered.note(problem.fields)
        raise invalid_options(problem) from None
    except StartRefused as failure:
        remembered.note(failure.fields)
        raise
    except Refusal as refusal:
        raise refused(refusal) from None
    except Unreachable:
        # Not a reason to refuse: the start waits for the manager, and checks again.
        spawner.log.warning("The manager is away: options of %s go unchecked", spawner._log_name)
    return chosen


def _last(spawner: PerijoveSpawner) -> dict[str, Any]:
    """What was chosen the last time, as far as it is valid."""
    last = dict(spawner.user_options or {})
    try:
        options.parse(last)
    except InvalidParameters:
        return {}
    return last


def accept(spawner: PerijoveSpawner, user_options: Any) -> None:
    """Take the options of a start. Raises ``StartRefused`` (HTTP 400) naming wrong fields."""
    try:
        spawner.choice = options.parse(user_options or {})
    except InvalidParameters as problem:
        raise invalid_options(problem) from None

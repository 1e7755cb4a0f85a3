"""What all commands share: the configuration file, the deployment, output and errors."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from traitlets import Bool, TraitType, Unicode
from traitlets.config import Application, Configurable
from traitlets.utils.importstring import import_item

from authenticator.problems import InvalidParameters, Problem
from hub.config.deployment import Deployment, DeploymentError

CONFIG_FILE = "perijove_config.py"
LOG_FORMAT = "[%(levelname)1.1s %(asctime)s.%(msecs).03d %(name)s] %(message)s"


class CommandError(Exception):
    """The command cannot do it; one sentence for the person, and the exit status."""

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.status = status


class UsageError(CommandError):
    """The command was called wrongly."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, 2)


class Command(Application):
    """Base of ``perijove`` and of its subcommands."""

    version = importlib.metadata.version("perijove")
    config_file = Unicode(
        help=f"""Configuration file to load. Default: the environment variable PERIJOVE_CONFIG, or
        {CONFIG_FILE} in the working directory if there is one.""",
    ).tag(config=True)
    generate_config = Bool(
        False, help=f"Write {CONFIG_FILE} with every trait, its help and its default, and end."
    ).tag(config=True)

    aliases: dict[Any, Any] = {
        ("f", "config"): ("Command.config_file", "Configuration file to load."),
        "state-dir": ("Deployment.state_dir", "State folder of the deployment."),
        "db-url": ("Deployment.db_url", "SQLAlchemy URL of the manager's database."),
        "log-level": "Application.log_level",
    }
    flags = {
        "debug": ({"Application": {"log_level": 10}}, "Log everything."),
        "generate-config": (
            {"Command": {"generate_config": True}},
            f"Write {CONFIG_FILE} with every trait and its help, and end.",
        ),
    }
    classes = [Deployment]
    description = ""  # so that help shows the docstring
    arguments: ClassVar[tuple[str, ...]] = ()
    """Names of the positional arguments; a trailing ``?`` marks an optional one."""

    def __init_subclass__(cls) -> None:
        """Each setting that a command declares is an option of its name, unless it has another."""
        super().__init_subclass__()
        aliases, flags = dict(cls.aliases), dict(cls.flags)
        for name, trait in vars(cls).items():
            if not isinstance(trait, TraitType) or not trait.metadata.get("config"):
                continue
            option, path = name.replace("_", "-"), f"{cls.__name__}.{name}"
            if isinstance(trait, Bool):
                if not trait.default_value:
                    flags.setdefault(option, ({cls.__name__: {name: True}}, trait.help))
            elif path not in aliases.values():
                aliases[option] = path
        cls.aliases, cls.flags = aliases, flags

    def _log_format_default(self) -> str:
        return LOG_FORMAT

    def initialize(self, argv: Sequence[str] | None = None) -> None:
        """Read the command line, then the configuration file, with the command line on top."""
        words = list(sys.argv[1:] if argv is None else argv)
        if not words or words[0] not in self.subcommands:
            self._refuse_unknown_options(words)
        self.parse_command_line(words)
        if self.subapp is not None:
            return
        path = self.config_path()
        if path is not None and not self.generate_config:
            self.load_config_file(path.name, path=str(path.parent))
            self.update_config(self.cli_config)

    def _refuse_unknown_options(self, words: list[str]) -> None:
        """Raise ``UsageError`` for an option that traitlets would pass over with a warning."""
        known: set[str] = {*self.flags, "h", "help", "help-all", "V", "version"}
        for names in self.aliases:
            known.update([names] if isinstance(names, str) else names)
        for word in words[: words.index("--")] if "--" in words else words:
            option = word.lstrip("-").split("=")[0]
            if word.startswith("-") and option not in known and "." not in option:
                raise UsageError(f"unknown option {word}; see `{self.name} --help`")

    def print_help(self, classes: bool = False) -> None:
        """Show help; with ``classes`` that of every configurable class too."""
        if classes:
            self.classes = all_classes()
        super().print_help(classes)

    def config_path(self) -> Path | None:
        """The configuration file in use, absolute; raises ``UsageError`` if a named one is missing."""
        named = self.config_file or os.environ.get("PERIJOVE_CONFIG", "")
        path = Path(named or CONFIG_FILE).absolute()
        if path.is_file() or (self.generate_config and named):
            return path
        if named:
            raise UsageError(f"the configuration file {path} does not exist")
        return None

    def start(self) -> None:
        """Run the subcommand, or this command."""
        if self.subapp is not None:
            self.subapp.start()
            return
        if self.generate_config:
            self.write_config_file()
            return
        self.act(*self.positional())

    def positional(self) -> list[str]:
        """The positional arguments, as many as ``arguments`` wants; raises ``UsageError``."""
        wanted = [name for name in self.arguments if not name.endswith("?")]
        given = list(self.extra_args)
        if not len(wanted) <= len(given) <= len(self.arguments):
            usage = " ".join(
                f"[{name[:-1]}]" if name.endswith("?") else name for name in self.arguments
            )
            raise UsageError(f"usage: {self.name} {usage}".rstrip() + f"; see `{self.name} --help`")
        return given

    def act(self, *arguments: str) -> None:
        """Do what the command is for."""
        raise UsageError(f"say what to do; see `{self.name} --help`")

    def deployment(self) -> Deployment:
        """The deployment that configuration and command line name."""
        return Deployment(parent=self)

    @property
    def level(self) -> int:
        """The log level as a number."""
        value = self.log_level
        return value if isinstance(value, int) else logging.getLevelNamesMapping()[str(value)]

    def log_everything(self) -> None:
        """Let the logs of all our modules go where this command's log goes; for daemons."""
        root = logging.getLogger()
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(LOG_FORMAT, datefmt=self.log_datefmt))
        root.handlers[:] = [handler]
        root.setLevel(self.level)
        logging.captureWarnings(True)

    def write_config_file(self) -> None:
        """Write the documented configuration file; an existing one stays."""
        path = Path(self.config_file or CONFIG_FILE).absolute()
        self.classes = all_classes()
        try:
            with path.open("x") as file:
                file.write(self.generate_config_file())
        except FileExistsError as error:
            raise CommandError(f"{path} exists already; it was not changed") from error
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}") from error
        say(f"Wrote {path}")


class Group(Command):
    """A command that only has subcommands."""

    commands: ClassVar[dict[str, type[Command]]] = {}
    """They are named after the group; help of it shows the first line of their docstrings."""

    def __init_subclass__(cls) -> None:
        """Give traitlets what it wants to know of ``commands``."""
        super().__init_subclass__()
        for verb, command in cls.commands.items():
            command.name = f"{cls.name} {verb}"
        if cls.commands:
            cls.subcommands = {
                verb: (command, (command.__doc__ or "").partition("\n")[0])
                for verb, command in cls.commands.items()
            }

    def act(self, *arguments: str) -> None:
        """Without a subcommand, say which there are."""
        known = ", ".join(self.subcommands)
        if arguments:
            raise UsageError(f"{self.name} has no subcommand {arguments[0]!r}: choose {known}")
        raise UsageError(f"usage: {self.name} COMMAND, where COMMAND is one of {known}")

    def positional(self) -> list[str]:
        """Everything is passed on to ``act``, which refuses it."""
        return list(self.extra_args)


CONFIGURABLES = (
    "hub.config.deployment.Deployment",
    "hub.commands.up.Up",
    "hub.manager.ManagerConfig",
    "hub.commands.image.ImageBuild",
    "spawner.agent.config.AgentConfig",
    "spawner.agent.metrics_endpoint.AgentMetricsEndpoint",
    "authenticator.authenticator.PerijoveAuthenticator",
    "spawner.spawner.PerijoveSpawner",
    "spawner.monitors.registry.Monitors",
    "spawner.monitors.statsd.StatsdMonitor",
    "spawner.monitors.statsd.DatadogMonitor",
    "spawner.monitors.sentry.SentryMonitor",
)
"""Every configurable class of the product, by import path; the reference is generated from them."""


def all_classes() -> list[type[Configurable]]:
    """Import every class of ``CONFIGURABLES``."""
    return [import_item(path) for path in CONFIGURABLES]


def say(text: str) -> None:
    """Write a line for the person to standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows as left-aligned columns under ``header``."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def run_command(launch: Callable[[], None]) -> int:
    """Run ``launch``; expected failures become one sentence on standard error and an exit status."""
    try:
        launch()
    except CommandError as error:
        return _fail(str(error), error.status)
    except InvalidParameters as problem:
        return _fail(problem.sentence(), 2)
    except Problem as problem:
        return _fail(str(problem), 1)
    except DeploymentError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return 1
    return 0


def _fail(sentence: str, status: int) -> int:
    sys.stderr.write(f"perijove: {sentence}\n")
    return status

"""A click group whose verbs are imported only when they are run, so that `drupe --help` and each verb start fast."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import NamedTuple

import click

from drupe.cli.startup import import_msgspec

_ELSEWHERE = {  # verbs of Docker that drupe does not have, and what does their work
    "login": "there is no 'login': pull and push take --creds, or DRUPE_CREDS",
    "history": "there is no 'history': drupe image inspect shows layers and config",
    "rename": "there is no 'rename': names are given at the start, with --name",
    "commit": "there is no 'commit': drupe export CONTAINER | drupe import - NAME",
    "diff": "there is no 'diff': drupe export CONTAINER shows the whole file system",
}


class Verb(NamedTuple):
    """Where a verb lives ("module:attribute" below drupe.cli), its one-line help, and its section in the help."""

    target: str
    help: str
    section: str = "Commands"


class LazyGroup(click.Group):
    """A group made from a table of verbs; the table alone answers `--help`."""

    def __init__(self, name: str, verbs: dict[str, Verb], *, help: str, params: Iterable[click.Parameter] = ()) -> None:
        super().__init__(name, help=help, params=list(params), no_args_is_help=True)
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = self.verbs.get(cmd_name)
        if verb is None:
            return None
        import_msgspec()
        module, attribute = verb.target.split(":")
        command: click.Command = getattr(importlib.import_module(f"drupe.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that `args` begin with. Raises UsageError with the nearest names for an unknown one."""
        name = args[0]
        if name in self.verbs or name.startswith("-"):
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        near = get_close_matches(name, self.verbs, n=3)
        text = f"unknown command {name!r}" + (f", did you mean {' or '.join(near)}?" if near else "")
        raise click.UsageError(_ELSEWHERE.get(name, text), ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(verb.section for verb in self.verbs.values()):
            with formatter.section(section):
                formatter.write_dl([(n, v.help) for n, v in self.verbs.items() if v.section == section])

"""Shell completion: the scripts, and the names that the daemon knows. Silent and quick: it never starts a daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_DEADLINE_S = 0.5


def completer(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """A click `shell_complete` callback for names of `kind`: container, pod, image, network or volume."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        try:
            names = _names(kind)
        except Exception:
            return []  # a completion must never print an error into the user's command line
        return [name for name in names if name.startswith(incomplete)]

    return complete


def _names(kind: str) -> list[str]:
    from drupe.cli.connection import connect_running
    from drupe.spec.control import ListFilter

    client = connect_running()
    try:
        return _of_list(kind, client.call(f"{kind}.list", ListFilter(), timeout_s=_DEADLINE_S))
    finally:
        client.close()


def _of_list(kind: str, answer: Any) -> list[str]:
    records = getattr(answer, f"{kind}s")
    if kind == "image":
        return [name for record in records for name in record.names]
    return [record.name or record.id for record in records]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> None:
    """Print the completion script of SHELL; for bash: eval "$(drupe completion bash)"."""
    from drupe.cli.main import cli

    click.echo(script(cli, shell))


def script(command: click.Command, shell: str) -> str:
    """The completion script of `shell` (bash, zsh, fish)."""
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell) or ShellComplete
    # ShellComplete.source itself: the one of bash starts a bash only to look at its version.
    return ShellComplete.source(kind(command, {}, "drupe", "_DRUPE_COMPLETE"))

"""What all prune verbs share: the question, the call, the answer."""

from __future__ import annotations

import sys

import click

from drupe.cli import borrowed, connection
from drupe.cli.output import human_size, show_json
from drupe.errors import InvalidArgument
from drupe.spec.control import Prune, Pruned


def prune(method: str, request: Prune, *, what: str, force: bool, as_json: bool) -> None:
    """Ask (on a terminal), prune, and say what went. Raises InvalidArgument where nobody can be asked."""
    if not force:
        if not sys.stdin.isatty():
            raise InvalidArgument(f"this removes {what}", hint="say --force to do it without being asked")
        borrowed.needs_own_process()
        click.confirm(f"Remove {what}?", abort=True, err=True)
    result: Pruned = connection.call(method, request)
    if as_json:
        show_json(result)
        return
    sys.stdout.writelines(f"{name}\n" for name in result.removed)
    sys.stdout.write(f"Reclaimed: {human_size(result.reclaimed_bytes)}\n")

"""`drupe rename`, `diff` and `commit`: a container's name, and what it has changed of its image."""

from __future__ import annotations

from typing import Any

import click

from drupe.cli import connection
from drupe.cli.image import change, settings
from drupe.cli.options import json_option, many, option, quiet_option, ref
from drupe.cli.output import show_list
from drupe.cli.progress import Progress
from drupe.spec.changes import Commit, FileChange, Rename
from drupe.spec.control import ImageInfo, Ref


@click.command("rename")
@ref("container")
@click.argument("name", metavar="NEW_NAME")
def rename(*, ref: str, name: str) -> None:
    """Give CONTAINER another name, and its pod, if that is called the same. Host names stay."""
    connection.call("container.rename", Rename(ref=ref, name=name))


@click.command("diff")
@json_option
@ref("container")
def diff(*, ref: str, as_json: bool) -> None:
    """List what CONTAINER has added (A), changed (C) and deleted (D) of its image's files."""
    found: list[FileChange] = connection.call("container.diff", Ref(ref=ref)).changes
    if as_json:
        show_list(found, as_json=True, name=lambda one: one.path, headers=(), row=lambda one: ())
        return
    for one in found:
        click.echo(f"{one.kind} {one.path}")


@click.command("commit")
@option("-a", "--author", default="", metavar="TEXT", help="Author.")
@option("-m", "--message", default="", metavar="TEXT", help="Message, kept in the image's history.")
@many("-c", "--change", "changes", parse=change, metavar="LINE", help='Dockerfile line, like CMD ["sh"].')
@quiet_option
@ref("container")
@click.argument("name", metavar="[NAME[:TAG]]", required=False, default="")
def commit(
    *, author: str, message: str, changes: tuple[tuple[str, Any], ...], quiet: bool, ref: str, name: str
) -> None:
    """Make an image of CONTAINER: its own image and what it has changed, which is read while it stands still. Volumes
    and other mounts are left out. Print the image's id."""
    with Progress(quiet=quiet) as progress:
        request = Commit(ref=ref, tag=name, author=author, message=message, config=settings(changes))
        info: ImageInfo = connection.call("container.commit", request, on_item=progress.show)
    click.echo(info.id)

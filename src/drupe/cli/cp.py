"""`drupe cp`: files between a container and the host, as tar streams through a pipe."""

from __future__ import annotations

import os
import posixpath
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from drupe.cli import connection, tree
from drupe.errors import InvalidArgument, NotFound
from drupe.spec.control import ArchiveGet, ArchivePut, FileInfo, FileRef, Ref

if TYPE_CHECKING:
    from drupe.rpc.client import Client

_MAX_LINKS = 40  # as path_resolution(7)


class Place(NamedTuple):
    """One side of a copy: a path, of a container unless `ref` is empty."""

    ref: str
    path: str


def place(text: str) -> Place:
    """Read CONTAINER:PATH or a path of the host (write ./a:b for a host file with a colon)."""
    ref, colon, path = text.partition(":")
    if text == "-" or not colon or text.startswith(("/", ".")) or "/" in ref or not ref:
        return Place("", text)
    return Place(ref, path or "/")


@click.command("cp")
@click.option("-a", "--archive", is_flag=True, help="Keep user and group ids.")
@click.option("-L", "--follow-link", is_flag=True, help="Copy what a link in SOURCE points to.")
@click.argument("source")
@click.argument("target")
def cp(*, source: str, target: str, archive: bool, follow_link: bool) -> None:
    """Copy SOURCE to TARGET; one of them is CONTAINER:PATH, the other a path of the host or - for a tar stream."""
    origin, goal = place(source), place(target)
    if bool(origin.ref) == bool(goal.ref):
        raise InvalidArgument("one of the two must be in a container, the other not", hint="write it as CONTAINER:PATH")
    with connection.connect() as client:
        if origin.ref:
            _copy_out(client, origin, goal.path, follow=follow_link, keep_ids=archive)
        else:
            _copy_in(client, origin.path, goal, follow=follow_link, keep_ids=archive)


def _copy_out(client: Client, origin: Place, goal: str, *, follow: bool, keep_ids: bool) -> None:
    contents_only = origin.path.endswith("/.")
    path = origin.path[:-2] or "/" if contents_only else origin.path
    request = ArchiveGet(ref=origin.ref, path=path, follow=follow or contents_only)
    if goal == "-":
        if sys.stdout.isatty():
            raise InvalidArgument("a tar stream is not written to a terminal", hint="redirect it: … - > file.tar")
        client.call("file.get_archive", request, fds={"data": 1})
        return
    into = tree.destination(goal, contents_only=contents_only)

    def send(fd: int) -> None:
        client.call("file.get_archive", request, fds={"data": fd})

    with_pipe(send, lambda fd: tree.unpack(fd, into, keep_ids=keep_ids), we_read=True)


def _copy_in(client: Client, source: str, goal: Place, *, follow: bool, keep_ids: bool) -> None:
    if source == "-":
        client.call("file.put_archive", ArchivePut(ref=goal.ref, path=goal.path, keep_ids=keep_ids), fds={"data": 0})
        return
    if not os.path.lexists(source):
        raise NotFound(f"no such file or directory: {source}")
    below, name = _goal_inside(client, goal, source)
    request = ArchivePut(ref=goal.ref, path=below, keep_ids=keep_ids)

    def take(fd: int) -> None:
        client.call("file.put_archive", request, fds={"data": fd})

    with_pipe(take, lambda fd: tree.pack(fd, source, name, follow=follow, keep_ids=keep_ids), we_read=False)


def _goal_inside(client: Client, goal: Place, source: str) -> tuple[str, str]:
    """The directory to unpack in and the name to give, by the rules of `docker cp`."""
    contents_only = source.endswith("/.")
    path, info = _follow(client, goal)
    if info is not None and info.type == "dir":
        return path, "." if contents_only else Path(source).resolve().name
    if info is not None and os.path.isdir(source):  # noqa: PTH112
        raise InvalidArgument(f"{goal.ref}:{goal.path} is a file: a directory can't be copied over it")
    if goal.path.endswith("/"):
        raise NotFound(f"no such directory: {goal.ref}:{goal.path}", hint="make it first: drupe exec … mkdir -p")
    parent, name = os.path.split(path)
    return parent or "/", name


def _follow(client: Client, goal: Place) -> tuple[str, FileInfo | None]:
    """Where `goal` lies behind the links at its end, and what is there (None: nothing)."""
    path = goal.path
    for _ in range(_MAX_LINKS):
        try:
            info: FileInfo = client.call("file.stat", FileRef(ref=goal.ref, path=path))
        except NotFound:
            client.call("container.status", Ref(ref=goal.ref))  # that is the one which must be there
            return path, None
        if info.type != "symlink":
            return path, info
        path = posixpath.join(posixpath.dirname(path.rstrip("/")), info.target)
    raise InvalidArgument(f"{goal.ref}:{goal.path}: too many levels of links")


def with_pipe(remote: Callable[[int], None], local: Callable[[int], None], *, we_read: bool) -> None:
    """Run `remote` (a call that gets one pipe end) in a thread and `local` (our work on the other end) here.

    The remote error wins: when the daemon refuses, our side only sees a broken pipe.
    """
    read_end, write_end = os.pipe()
    ours, theirs = (read_end, write_end) if we_read else (write_end, read_end)
    failed: list[BaseException] = []

    def call() -> None:
        try:
            remote(theirs)
        except BaseException as error:
            failed.append(error)
        finally:
            os.close(theirs)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    local_error: Exception | None = None
    try:
        local(ours)
    except Exception as error:
        local_error = error
    finally:
        os.close(ours)
    thread.join()
    if failed and not isinstance(local_error, InvalidArgument):
        raise failed[0]
    if local_error is not None:
        raise local_error

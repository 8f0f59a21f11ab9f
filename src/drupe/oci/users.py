"""Who the workload runs as: "name", "uid", "name:group", "uid:gid", looked up in the image's own passwd and group."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from drupe.errors import InvalidArgument
from drupe.linux.openat2 import open_regular

MAX_ID = 2**31 - 1  # Docker's bound: an id above it is negative to many programs
_MAX_FILE_BYTES = 4 << 20  # passwd and group come from the image: an absurd size is refused, not read


class ResolvedUser(NamedTuple):
    """groups: supplementary group ids, the primary one first. name: "" when the uid has no entry."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    name: str


ROOT = ResolvedUser(uid=0, gid=0, groups=(0,), home="/root", name="root")


class _User(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(root_fd: int, user: str | None, groups: Iterable[str] = ()) -> ResolvedUser:
    """Look `user` up inside the root tree `root_fd`; None or "" is root. groups: further ones, by name or id.

    As Docker: a user without an explicit group gets its passwd group and the groups it is a member of; with one, only
    that. A number needs no entry. Raises InvalidArgument naming an unknown user or group, or an id out of range.
    """
    user_part, _, group_part = (user or "0").partition(":")
    user_part = user_part or "0"
    entry = _find_user(_passwd(root_fd), user_part)
    known = _group(root_fd)
    gid = _find_group(known, group_part) if group_part else entry.gid
    member_of = () if group_part else tuple(g.gid for g in known if entry.name and entry.name in g.members)
    extra = tuple(_find_group(known, name) for name in groups)
    ids = tuple(dict.fromkeys((gid, *member_of, *extra)))
    return ResolvedUser(uid=entry.uid, gid=gid, groups=ids, home=entry.home, name=entry.name)


def user_names(root_fd: int) -> dict[int, str]:
    """uid to name, from the passwd of the root tree; the first entry of a uid counts. Empty when there is none."""
    return {entry.uid: entry.name for entry in reversed(_passwd(root_fd))}


def _find_user(known: Sequence[_User], text: str) -> _User:
    number = _number(text)
    for entry in known:
        if entry.name == text or entry.uid == number:
            return entry
    if number is None:
        raise InvalidArgument(
            f"no user {text!r} in the image",
            hint="give a numeric uid, or a name that the image's /etc/passwd has",
        )
    return _User(name="", uid=number, gid=0, home="/root" if number == 0 else "/")


def _find_group(known: Sequence[_Group], text: str) -> int:
    number = _number(text)
    for entry in known:
        if entry.name == text or entry.gid == number:
            return entry.gid
    if number is None:
        raise InvalidArgument(
            f"no group {text!r} in the image",
            hint="give a numeric gid, or a name that the image's /etc/group has",
        )
    return number


def _number(text: str) -> int | None:
    if not (text.isascii() and text.lstrip("-").isdigit()):
        return None
    number = int(text) if len(text) < 20 else MAX_ID + 1
    if not 0 <= number <= MAX_ID:
        raise InvalidArgument(f"id {text} is out of range", hint=f"ids go from 0 to {MAX_ID}")
    return number


def _passwd(root_fd: int) -> list[_User]:
    found = []
    for fields in _lines(root_fd, "etc/passwd"):
        if len(fields) >= 6 and (ids := _ids(fields[2], fields[3])):
            found.append(_User(fields[0], ids[0], ids[1], fields[5] or "/"))
    return found


def _group(root_fd: int) -> list[_Group]:
    found = []
    for fields in _lines(root_fd, "etc/group"):
        if len(fields) >= 3 and (ids := _ids(fields[2])):
            members = tuple(name for name in fields[3].split(",") if name) if len(fields) > 3 else ()
            found.append(_Group(fields[0], ids[0], members))
    return found


def _ids(*texts: str) -> tuple[int, ...]:
    """The numbers of an entry, or () when one is no legal id: such a line cannot name anybody."""
    if all(t.isascii() and t.isdigit() and len(t) <= 10 and int(t) <= MAX_ID for t in texts):
        return tuple(int(t) for t in texts)
    return ()


def _lines(root_fd: int, path: str) -> list[list[str]]:
    try:
        text = _read(root_fd, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL):
            return []  # an image without the file: only numbers can be meant
        raise InvalidArgument(f"cannot read /{path} of the image", cause=error.strerror or "") from None
    return [line.strip().split(":") for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _read(root_fd: int, path: str) -> str:
    # O_NONBLOCK: the workload may hold a lease on it (fcntl(2), F_SETLEASE), and an open would wait for it.
    fd = open_regular(root_fd, path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(fd, "rb", buffering=0) as file:
        data = bytearray()
        while chunk := file.read(1 << 16):
            data += chunk
            if len(data) > _MAX_FILE_BYTES:
                raise InvalidArgument(f"/{path} of the image is larger than {_MAX_FILE_BYTES} bytes")
    return data.decode("utf-8", "surrogateescape")

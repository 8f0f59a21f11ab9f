"""Of the control API: what a container has changed, images made of that, and how images were made."""

from __future__ import annotations

from typing import Any

from drupe.spec.base import Record, Spec


class Rename(Spec):
    """name: the new one."""

    ref: str
    name: str


class FileChange(Record):
    """kind: "A" (added), "C" (changed), "D" (deleted)."""

    kind: str
    path: str


class ChangeList(Record):
    changes: list[FileChange]


class Commit(Spec):
    """An image of a container: its own image and what it has changed. tag: its name, "" for none. config: settings of
    the image (OCI's names: "Cmd", "Env"…) beside those that the container was made with."""

    ref: str
    tag: str = ""
    author: str = ""
    message: str = ""
    config: dict[str, Any] = {}


class HistoryStep(Record):
    """One step of how an image was made. created: RFC 3339, or "". size_bytes: of its layer, unpacked."""

    created: str
    created_by: str
    comment: str
    size_bytes: int


class History(Record):
    id: str
    steps: list[HistoryStep]

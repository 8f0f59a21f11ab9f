"""Named volumes: directories that outlive containers, `<root>/<name>/data`, known to the journal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from drupe.errors import AlreadyExists, InvalidState, NotFound
from drupe.images.files import remove_tree, tree_bytes
from drupe.spec.base import check_name
from drupe.spec.control import VolumeInfo

KIND = "volume"


class Records(Protocol):
    """The part of the journal that volumes need."""

    def put_record(self, kind: str, key: str, data: dict[str, Any]) -> None: ...
    def get_record(self, kind: str, key: str) -> dict[str, Any] | None: ...
    def delete_record(self, kind: str, key: str) -> None: ...
    def records(self, kind: str) -> dict[str, dict[str, Any]]: ...


class Volumes:
    """All volumes of a node."""

    def __init__(self, root: Path, records: Records) -> None:
        self._root = root
        self._records = records

    def create(self, name: str, *, labels: dict[str, str] | None = None, anonymous: bool = False) -> VolumeInfo:
        """A new, empty volume. Raises AlreadyExists, InvalidArgument (name)."""
        check_name(name, "volume")
        if self._records.get_record(KIND, name) is not None:
            raise AlreadyExists(f"volume {name!r} exists")
        data = {"created_at": time.time(), "labels": labels or {}, "anonymous": anonymous}
        self._records.put_record(KIND, name, data)
        path = self.path(name)
        path.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o711)
        path.chmod(0o755)
        return self.inspect(name)

    def ensure(self, name: str, *, anonymous: bool = False) -> tuple[VolumeInfo, bool]:
        """The volume, made if missing; and whether it was made."""
        if self._records.get_record(KIND, name) is not None:
            self.path(name).mkdir(parents=True, exist_ok=True)
            return self.inspect(name), False
        return self.create(name, anonymous=anonymous), True

    def inspect(self, name: str) -> VolumeInfo:
        data = self._records.get_record(KIND, name)
        if data is None:
            raise NotFound(f"no volume {name!r}", hint="drupe volume ls lists them")
        return VolumeInfo(name=name, path=str(self.path(name)), **data)

    def list(self) -> list[VolumeInfo]:
        return [self.inspect(name) for name in sorted(self._records.records(KIND))]

    def delete(self, name: str, *, used_by: Sequence[str], force: bool = False) -> None:
        """Remove the volume and what it holds. InvalidState while containers use it. force: a missing one is fine."""
        if self._records.get_record(KIND, name) is None:
            if force:
                return
            raise NotFound(f"no volume {name!r}", hint="drupe volume ls lists them")
        if used_by:
            raise InvalidState(f"volume {name!r} is used by {', '.join(used_by)}", hint="delete the container first")
        remove_tree(self._root / name)
        self._records.delete_record(KIND, name)

    def path(self, name: str) -> Path:
        return self._root / name / "data"

    def size_bytes(self, name: str) -> int:
        return tree_bytes(self._root / name)

"""The journal's records in the words of the network manager."""

from __future__ import annotations

from typing import Any

from drupe.state.journal import Journal


class JournalRecords:
    """put, get, delete, all."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def put(self, kind: str, key: str, data: dict[str, Any]) -> None:
        self._journal.put_record(kind, key, data)

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        return self._journal.get_record(kind, key)

    def delete(self, kind: str, key: str) -> None:
        self._journal.delete_record(kind, key)

    def all(self, kind: str) -> dict[str, dict[str, Any]]:
        return self._journal.records(kind)

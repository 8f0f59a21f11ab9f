"""The journal: one SQLite file per node that is the truth about pods, containers, networks and what is half done.

Write order (design, "State and recovery"): a row exists before anything is made for it; `phase` names the step that is
being done and is written before the step begins, so the write before a step is also the record that the one before it
is finished. Recovery reads state and phase and needs nothing else. WAL with synchronous=NORMAL: a killed process loses
nothing; a power cut may lose the last moments, together with the pods themselves.

Secrets never get here: the runtime strips them from specs first.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from drupe.errors import DataLoss, ResourceExhausted, Unavailable

VERSION = 1
KEPT_EVENTS = 10_000
_WRITES_BETWEEN_CHECKPOINTS = 400
_MOST_PAGES_IN_LOG = 4000  # 16 MB; SQLite itself makes the checkpoint there, should ours not have come through

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    kind TEXT NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, phase TEXT NOT NULL DEFAULT '',
    data BLOB NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    kind TEXT NOT NULL, key TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, data BLOB NOT NULL);
"""


class Row(msgspec.Struct):
    """One pod or container as the journal has it. data: its plain form (spec and status)."""

    id: str
    state: str
    phase: str
    data: dict[str, Any]


class Journal:
    """The open journal. Calls are short and synchronous (tens of microseconds): they may run on the event loop.

    Raises ResourceExhausted on a full disk, Unavailable on a read-only or broken file system.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._db = self._open()
        self._event_count = 0
        self._writes = 0
        self._checkpoint = threading.Thread()

    # -- pods and containers ------------------------------------------------------------------------------------

    def put(self, kind: str, id_: str, *, state: str, phase: str, data: dict[str, Any]) -> None:
        """Insert or replace the whole row of a pod or container."""
        self._write(
            "INSERT OR REPLACE INTO objects (kind, id, state, phase, data) VALUES (?, ?, ?, ?, ?)",
            (kind, id_, state, phase, _pack(data)),
        )

    def advance(self, kind: str, id_: str, *, phase: str) -> None:
        """Write that step `phase` begins now (and that the one before it is finished)."""
        self._write("UPDATE objects SET phase = ? WHERE kind = ? AND id = ?", (phase, kind, id_))

    def remove(self, kind: str, id_: str) -> None:
        self._write("DELETE FROM objects WHERE kind = ? AND id = ?", (kind, id_))

    def rows(self, kind: str) -> list[Row]:
        found = self._db.execute("SELECT id, state, phase, data FROM objects WHERE kind = ?", (kind,))
        return [Row(i, s, p, _unpack(d)) for i, s, p, d in found]

    # -- records of other parts (networks, leases, volumes) -----------------------------------------------------

    def put_record(self, kind: str, key: str, data: dict[str, Any]) -> None:
        self._write("INSERT OR REPLACE INTO records (kind, key, data) VALUES (?, ?, ?)", (kind, key, _pack(data)))

    def get_record(self, kind: str, key: str) -> dict[str, Any] | None:
        row = self._db.execute("SELECT data FROM records WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        return None if row is None else _unpack(row[0])

    def delete_record(self, kind: str, key: str) -> None:
        self._write("DELETE FROM records WHERE kind = ? AND key = ?", (kind, key))

    def records(self, kind: str) -> dict[str, dict[str, Any]]:
        found = self._db.execute("SELECT key, data FROM records WHERE kind = ?", (kind,))
        return {key: _unpack(data) for key, data in found}

    # -- events -------------------------------------------------------------------------------------------------

    def add_event(self, at: float, data: dict[str, Any]) -> None:
        """Keep an event for replay; the oldest beyond KEPT_EVENTS go."""
        self._write("INSERT INTO events (at, data) VALUES (?, ?)", (at, _pack(data)))
        self._event_count += 1
        if self._event_count % 1000 == 0:
            self._write("DELETE FROM events WHERE seq <= (SELECT MAX(seq) FROM events) - ?", (KEPT_EVENTS,))

    def events(self, *, since: float, until: float | None = None) -> list[dict[str, Any]]:
        limit = until if until is not None else float("inf")
        found = self._db.execute("SELECT data FROM events WHERE at >= ? AND at <= ? ORDER BY seq", (since, limit))
        return [_unpack(data) for (data,) in found]

    # -- the file -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Several writes as one; rolled back when the block raises."""
        self._write("BEGIN IMMEDIATE", ())
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._write("COMMIT", ())

    def close(self) -> None:
        if self._checkpoint.is_alive():
            self._checkpoint.join()
        self._db.close()

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        try:
            self._db.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise _journal_error(self.path, error) from error
        self._writes += 1
        if self._writes % _WRITES_BETWEEN_CHECKPOINTS == 0 and not self._checkpoint.is_alive():
            self._begin_checkpoint()

    def _begin_checkpoint(self) -> None:
        """Where there is no thread to be had, the log grows on: the write that brought us here is done."""
        checkpoint = threading.Thread(target=_make_checkpoint, args=(self.path,), name="checkpoint")
        with contextlib.suppress(RuntimeError):
            checkpoint.start()
            self._checkpoint = checkpoint

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise _journal_error(self.path, error) from error
            self._set_aside(str(error))
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(f"PRAGMA wal_autocheckpoint={_MOST_PAGES_IN_LOG}")
            db.execute("PRAGMA cache_size=-512")  # half a MiB: the daemon's memory is a promise
            if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check found damage")
            self._check_version(db)
            db.executescript(_SCHEMA)
        except BaseException:
            db.close()
            raise
        return db

    def _check_version(self, db: sqlite3.Connection) -> None:
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found > VERSION:
            raise DataLoss(
                f"journal {self.path} has schema {found}, this drupe knows {VERSION}",
                hint="run the newer drupe that wrote it, or move the file away",
            )
        db.execute(f"PRAGMA user_version={VERSION}")

    def _set_aside(self, why: str) -> None:
        """A corrupt journal is kept for inspection. The pods it knew are lost: no row names them, so recovery ends
        them as orphans."""
        aside = self.path.with_name(f"{self.path.name}.corrupt-{int(time.time())}")
        self.path.rename(aside)
        for tail in ("-wal", "-shm"):
            self.path.with_name(self.path.name + tail).unlink(missing_ok=True)
        self.notes.append(f"journal was corrupt ({why}); moved to {aside}")


def _pack(data: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(data)


def _unpack(data: bytes) -> dict[str, Any]:
    unpacked: dict[str, Any] = msgspec.msgpack.decode(data)
    return unpacked


def _make_checkpoint(path: Path) -> None:
    """Bring what is in the log into the file. It waits for the disk, tens of milliseconds in which nothing would start:
    so it has a thread and a connection of its own, and keeps no writer waiting (sqlite.org/wal.html, "passive").
    What goes wrong shows at the next write, or the log just grows for a while."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=0)) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _journal_error(path: Path, error: sqlite3.Error) -> Exception:
    text = str(error)
    if "full" in text:
        return ResourceExhausted(f"journal {path}: the disk is full", hint="free space: drupe system prune", cause=text)
    if "readonly" in text or "read-only" in text:
        return Unavailable(f"journal {path} is on a read-only file system", hint="remount it writable", cause=text)
    return Unavailable(f"journal {path} cannot be used", cause=text, hint="check the state directory's disk and rights")

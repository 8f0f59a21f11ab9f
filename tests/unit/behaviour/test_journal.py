"""The journal file: what is written comes back, damage is set aside, a newer one is refused, old events go."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from drupe.errors import DataLoss, ResourceExhausted, Unavailable
from drupe.state import journal as module
from drupe.state.journal import _WRITES_BETWEEN_CHECKPOINTS, VERSION, Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal.db")
    yield made
    made.close()


def again(journal: Journal) -> Journal:
    journal.close()
    return Journal(journal.path)


def test_rows_come_back_as_they_were(journal: Journal) -> None:
    data = {"spec": {"name": "wéb", "n": 1.5, "none": None, "list": [1, {"a": b"\0\xff"}]}, "big": 2**60}
    journal.put("pod", "p1", state="ready", phase="", data=data)
    journal.put("container", "p1", state="running", phase="starting", data={})
    journal = again(journal)
    (row,) = journal.rows("pod")
    assert (row.id, row.state, row.phase, row.data) == ("p1", "ready", "", data)
    assert [(r.id, r.state, r.phase) for r in journal.rows("container")] == [("p1", "running", "starting")]
    journal.close()


def test_put_replaces_advance_changes_only_the_phase_remove_removes(journal: Journal) -> None:
    journal.put("pod", "p1", state="creating", phase="", data={"v": 1})
    journal.advance("pod", "p1", phase="network")
    (row,) = journal.rows("pod")
    assert (row.state, row.phase, row.data) == ("creating", "network", {"v": 1})
    journal.put("pod", "p1", state="ready", phase="", data={"v": 2})
    assert [(r.state, r.phase, r.data) for r in journal.rows("pod")] == [("ready", "", {"v": 2})]
    journal.advance("pod", "nobody", phase="x")
    journal.remove("pod", "p1")
    journal.remove("pod", "p1")
    assert journal.rows("pod") == []


def test_records(journal: Journal) -> None:
    journal.put_record("volume", "v1", {"a": 1})
    journal.put_record("volume", "v1", {"a": 2})
    journal.put_record("network", "v1", {"b": 1})
    assert journal.get_record("volume", "v1") == {"a": 2} and journal.get_record("volume", "v2") is None
    assert journal.records("volume") == {"v1": {"a": 2}}
    journal.delete_record("volume", "v1")
    journal.delete_record("volume", "v1")
    assert journal.records("volume") == {} and journal.records("network") == {"v1": {"b": 1}}


def test_events_by_time(journal: Journal) -> None:
    for at in (1.0, 2.0, 3.0):
        journal.add_event(at, {"at": at})
    assert [e["at"] for e in journal.events(since=2.0)] == [2.0, 3.0]
    assert [e["at"] for e in journal.events(since=0.0, until=2.0)] == [1.0, 2.0]


def test_old_events_go(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_EVENTS", 100)
    with journal.transaction():
        for at in range(2500):
            journal.add_event(float(at), {"at": at})
    kept = [e["at"] for e in journal.events(since=0.0)]
    assert kept[-1] == 2499 and 100 <= len(kept) <= 1100


def test_a_transaction_is_all_or_nothing(journal: Journal) -> None:
    with pytest.raises(ZeroDivisionError), journal.transaction():
        journal.put("pod", "p1", state="ready", phase="", data={})
        raise ZeroDivisionError
    assert journal.rows("pod") == []
    with journal.transaction():
        journal.put("pod", "p1", state="ready", phase="", data={})
    assert len(journal.rows("pod")) == 1


@pytest.mark.parametrize("harm", ["garbage", "truncated", "page"])
def test_a_damaged_file_is_set_aside(journal: Journal, harm: str) -> None:
    for number in range(200):
        journal.put("pod", f"p{number}", state="ready", phase="", data={"x": "y" * 100})
    journal.close()
    path = journal.path
    content = path.read_bytes()
    if harm == "garbage":
        path.write_bytes(os.urandom(5000))
    if harm == "truncated":
        path.write_bytes(content[: len(content) // 2 // 4096 * 4096])
    if harm == "page":
        path.write_bytes(content[:8192] + os.urandom(4096) + content[12288:])
    damaged = path.read_bytes()
    with closing(Journal(path)) as fresh:
        assert fresh.rows("pod") == []
        (note,) = fresh.notes
        assert "journal was corrupt" in note
        fresh.put("pod", "p1", state="ready", phase="", data={})
    (aside,) = path.parent.glob("journal.db.corrupt-*")
    assert aside.read_bytes() == damaged and str(aside) in note


def test_a_newer_schema_is_refused_and_left_alone(journal: Journal) -> None:
    journal.put("pod", "p1", state="ready", phase="", data={})
    journal.close()
    with closing(sqlite3.connect(journal.path)) as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    with pytest.raises(DataLoss, match=f"has schema {VERSION + 1}, this drupe knows {VERSION}") as caught:
        Journal(journal.path)
    assert caught.value.hint
    with closing(sqlite3.connect(journal.path)) as db:
        assert db.execute("SELECT id FROM objects").fetchall() == [("p1",)]


def test_a_full_disk_is_said_so(journal: Journal) -> None:
    journal._db.execute("PRAGMA max_page_count=10")
    with pytest.raises(ResourceExhausted, match="the disk is full") as caught:
        for number in range(100):
            journal.put("pod", f"p{number}", state="ready", phase="", data={"x": "y" * 1000})
    assert caught.value.hint == "free space: drupe system prune"


def test_a_read_only_file_is_said_so(journal: Journal) -> None:
    journal._db.execute("PRAGMA query_only=1")
    with pytest.raises(Unavailable, match="read-only"):
        journal.put("pod", "p1", state="ready", phase="", data={})


def test_a_path_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be used"):
        Journal(tmp_path / "no" / "such" / "journal.db")


def test_what_was_written_survives_a_kill(journal: Journal, tmp_path: Path) -> None:
    """Another process sees each write at once: nothing waits in this one's memory."""
    journal.put("pod", "p1", state="ready", phase="", data={})
    with closing(sqlite3.connect(journal.path)) as db:
        assert db.execute("SELECT id FROM objects").fetchall() == [("p1",)]


def test_the_log_is_brought_into_the_file_meanwhile(journal: Journal, tmp_path: Path) -> None:
    """Without a writer that waits for it: SQLite's own checkpoint comes ten times later."""
    for number in range(_WRITES_BETWEEN_CHECKPOINTS):
        journal.put("pod", f"p{number}", state="ready", phase="", data={})
    journal._checkpoint.join()
    alone = shutil.copy(journal.path, tmp_path / "alone.db")
    with closing(sqlite3.connect(alone)) as db:
        assert db.execute("SELECT COUNT(*) FROM objects").fetchall() == [(_WRITES_BETWEEN_CHECKPOINTS,)]


def test_a_checkpoint_that_cannot_be_made_harms_nobody(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drupe.state.journal._WRITES_BETWEEN_CHECKPOINTS", 1)
    with closing(sqlite3.connect(journal.path)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM objects").fetchall()  # a reader keeps the log from being done with
        for number in range(20):
            journal.put("pod", f"p{number}", state="ready", phase="", data={})
    journal.close()
    with closing(Journal(journal.path)) as found:
        assert len(found.rows("pod")) == 20

"""Records on disk: written over where that is one call, whole in any case."""

from __future__ import annotations

from pathlib import Path

from drupe.sandboxers.kept.records import Record


class Note(Record, kw_only=True):
    text: str


def test_a_record_is_read_as_it_was_written_last(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    assert Note.read(path) is None
    for length in (5, 500, 0, 3000, 6000, 1, 4000):  # longer, shorter, beyond what one call writes, and back
        Note(text="x" * length).write(path)
        assert Note.read(path) == Note(text="x" * length)
        assert [one.name for one in tmp_path.iterdir()] == ["note.json"]


def test_the_same_file_as_long_as_it_is_short(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    Note(text="a").write(path)
    first = path.stat().st_ino
    Note(text="b" * 2000).write(path)
    assert path.stat().st_ino == first
    Note(text="c" * 5000).write(path)
    Note(text="d").write(path)  # longer by then than one call writes over
    assert Note.read(path) == Note(text="d")


def test_what_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text('{"text": "half')
    assert Note.read(path) is None

"""What unit tests share."""

from __future__ import annotations

import pytest

from drupe.sandboxers.kinds import KINDS, LEVELS, Kind


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a kind that is planned, and that this version has no code for."""
    monkeypatch.setitem(KINDS, "someday", Kind("someday", LEVELS[0], "nothing yet"))  # type: ignore[arg-type]
    return "someday"

"""The command line against a scripted daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from drupe.cli import connection
from framework.scripted import Scripted


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scripted]:
    """`daemon({"pod.list": answer})` makes every verb talk to that script."""

    def use(answers: dict[str, Any], items: dict[str, list[Any]] | None = None) -> Scripted:
        client = Scripted(answers, items)
        monkeypatch.setattr(connection, "connect", lambda: client)
        monkeypatch.setattr(connection, "connect_running", lambda: client)
        return client

    return use

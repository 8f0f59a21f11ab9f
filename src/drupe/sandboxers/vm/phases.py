"""How long the parts of a machine's start took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Milliseconds by name; a name may come several times."""

    def __init__(self) -> None:
        self.told: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.told[name] = round(self.told.get(name, 0.0) + (time.monotonic() - began) * 1000, 2)

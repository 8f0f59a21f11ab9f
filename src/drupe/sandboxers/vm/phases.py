"""How long the parts of a machine's start took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Milliseconds by name, added to `told`; a name may come several times."""

    def __init__(self, told: dict[str, float] | None = None) -> None:
        self.told = {} if told is None else told

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.since(name, began)

    def since(self, name: str, began: float) -> None:
        """One that began at that time (time.monotonic) and ends now."""
        self.told[name] = round(self.told.get(name, 0.0) + (time.monotonic() - began) * 1000, 2)

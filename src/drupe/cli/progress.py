"""Progress of long work on standard error: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from drupe.spec import control


class Progress:
    """A context manager whose `show` takes the streamed Progress items of a call."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, str] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, item: control.Progress) -> None:
        """Show one step."""
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._show_bar(item)
        elif self._said.get(item.id) != item.status:
            self._said[item.id] = item.status
            sys.stderr.write(f"{item.id}: {item.status}\n")

    def _show_bar(self, item: control.Progress) -> None:
        if self._bars is None:
            self._bars = _bars()
            self._bars.start()
        task = self._tasks.get(item.id)
        if task is None:
            task = self._tasks[item.id] = self._bars.add_task("", name=_label(item.id), total=None)
        total = item.total or (item.current or 1 if item.status == "done" else None)
        done = total if item.status == "done" else item.current
        self._bars.update(task, total=total, completed=done, description=item.status)


def _label(identifier: str) -> str:
    from drupe.cli.output import clean, short_id

    return clean(short_id(identifier) if identifier.startswith("sha256:") else identifier)


def _bars() -> Any:
    # rich costs 100 ms to import: only here, where there is a bar to draw.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.fields[name]}", markup=False),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    )

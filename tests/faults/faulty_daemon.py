"""The real daemon over a journal that can kill it: `python faulty_daemon.py`, armed by a file.

The file DRUPE_TEST_ARM holds "WRITE MOMENT": from its appearance on journal writes are counted, and at that one the
process sends itself SIGKILL, "before" or "after" the write is done. WRITE 0 only lists them, in DRUPE_TEST_ARM.list.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from drupe.services.daemon import serve
from framework.dying import CountingJournal

ARM = Path(os.environ["DRUPE_TEST_ARM"])


class DyingJournal(CountingJournal):
    """Dies as the arming file wants."""

    def __init__(self, path: Path) -> None:
        self.at_write = self.count
        self.armed: tuple[int, str] | None = None
        self.since_armed = 0
        super().__init__(path)

    def count(self, _number: int, moment: str) -> None:
        if self.armed is None and moment == "before":
            self.armed = armed_for()
        if self.armed is None:
            return
        if moment == "before":
            self.since_armed += 1
            with ARM.with_suffix(".list").open("a") as file:
                file.write(self.writing + "\n")
        if (self.since_armed, moment) == self.armed:
            ARM.unlink()
            print(f"dies {moment} write {self.since_armed}: {self.writing}", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


def armed_for() -> tuple[int, str] | None:
    """The write and the moment to die at; None while the file is not there."""
    try:
        number, moment = ARM.read_text().split()
    except OSError:
        return None
    return int(number), moment


if __name__ == "__main__":
    sys.exit(serve(root=Path(os.environ["DRUPE_ROOT"]), run=Path(os.environ["DRUPE_RUN"]), journal=DyingJournal))

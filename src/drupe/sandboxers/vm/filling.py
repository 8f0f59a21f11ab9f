"""Fills a machine's memory with a template's while its monitor starts, in the pod's cgroup. A program of its own:

    python -I -S filling.py MEMORY TARGET TOLD

MEMORY: the template's, with holes. TARGET: an open file as large, empty. TOLD: a pipe that gets a byte when all is
there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

DONE = b"."


def fill(source: int, target: int) -> None:
    """Copy what is no hole, within the kernel."""
    for begin, end in _data(source):
        os.lseek(target, begin, os.SEEK_SET)
        at = begin
        while at < end:
            at += os.sendfile(target, source, at, end - at)


def _data(source: int) -> Iterator[tuple[int, int]]:
    end, size = 0, os.fstat(source).st_size
    while end < size:
        try:
            begin = os.lseek(source, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            return
        end = os.lseek(source, begin, os.SEEK_HOLE)
        yield begin, end


if __name__ == "__main__":
    fill(os.open(sys.argv[1], os.O_RDONLY), int(sys.argv[2]))
    os.write(int(sys.argv[3]), DONE)

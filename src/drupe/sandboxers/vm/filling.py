"""Fills a machine's memory with a template's while its monitor starts, in the pod's cgroup. A program of its own:

    python -I -S filling.py MEMORY TARGET TOLD BEGIN END

MEMORY: the template's, with holes. TARGET: an open file as large, empty. TOLD: a pipe that gets a byte when all is
there. BEGIN, END: what is left out, in bytes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

DONE = b"."


def fill(source: int, target: int, left_out: range) -> None:
    """Copy what is no hole, within the kernel."""
    for begin, end in _data(source):
        _copy(source, target, begin, min(end, left_out.start))
        _copy(source, target, max(begin, left_out.stop), end)


def _copy(source: int, target: int, begin: int, end: int) -> None:
    if begin < end:
        os.lseek(target, begin, os.SEEK_SET)
    while begin < end:
        begin += os.sendfile(target, source, begin, end - begin)


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
    fill(os.open(sys.argv[1], os.O_RDONLY), int(sys.argv[2]), range(int(sys.argv[4]), int(sys.argv[5])))
    os.write(int(sys.argv[3]), DONE)

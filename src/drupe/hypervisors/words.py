"""Words of programs that may be in a guest's hands."""

from __future__ import annotations

import re

_CHARS = 500
_MOVES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_c])")  # control sequences (ECMA-48), as firmware writes them


def readable(text: str, *, chars: int = _CHARS) -> str:
    """On one line, without what moves a terminal, and no longer than somebody would read."""
    line = " ".join(_MOVES.sub("", text[: 2 * chars]).split())
    line = "".join(char for char in line if char.isprintable())
    return line if len(line) <= chars else line[:chars] + "…"

"""What a machine's console says of its end."""

from __future__ import annotations

from pathlib import Path

_LAST_WORDS_BYTES = 16 << 10  # a panic comes with registers and a trace


def last_words(console: Path) -> str:
    """The last line that says something."""
    return next((line for line in reversed(_tail(console)) if line), "")


def why(end: str, console: Path) -> str:
    """Why a machine ended: the kernel's panic, or its last words."""
    lines = _tail(console)
    panic = next((line for line in lines if "Kernel panic" in line), "")
    return panic or f"{end}: {last_words(console)}"


def _tail(path: Path) -> list[str]:
    """The last lines, without stamps; a guest wrote them."""
    try:
        data = path.read_bytes()[-_LAST_WORDS_BYTES:]
    except OSError:
        return []
    lines = [line.split(b" ", 3)[-1] for line in data.splitlines()[1:] or data.splitlines()]
    return ["".join(char for char in line.decode(errors="replace") if char.isprintable()).strip() for line in lines]

"""Signal names and numbers, as people write them: "TERM", "SIGTERM", "15", "RTMIN+3" (signal(7))."""

from __future__ import annotations

import difflib
import signal

from drupe.errors import InvalidArgument

_NUMBERS = {name: int(s) for name, s in signal.Signals.__members__.items()} | {"SIGUNUSED": 31}
_NAMES = {int(s): s.name for s in signal.Signals if s.name not in ("SIGRTMIN", "SIGRTMAX")}
_LAST = 64  # _NSIG on every architecture drupe runs on


def parse_signal(text: str) -> int:
    """The number of a signal given by name (any case, with or without SIG) or number 1..64.

    Raises InvalidArgument naming the text and the names that come near.
    """
    word = text.strip().upper()
    if word.isascii() and word.isdigit():
        number = int(word) if len(word) < 9 else 0
    else:
        number = _by_name(word if word.startswith("SIG") else f"SIG{word}")
    if 1 <= number <= _LAST:
        return number
    raise InvalidArgument(f"no signal {text!r}", hint=_hint(word))


def signal_name(number: int) -> str:
    """The name of a signal, such as "SIGTERM" or "SIGRTMIN+3"; the bare number when it has none."""
    if number in _NAMES:
        return _NAMES[number]
    if signal.SIGRTMIN <= number <= _LAST:
        offset = number - signal.SIGRTMIN
        return f"SIGRTMIN+{offset}" if offset else "SIGRTMIN"
    return str(number)


def _by_name(name: str) -> int:
    if name in _NUMBERS:
        return _NUMBERS[name]
    for base, sign in (("SIGRTMIN+", 1), ("SIGRTMAX-", -1)):
        tail = name.removeprefix(base)
        if tail != name and tail.isascii() and tail.isdigit() and len(tail) <= 2:
            number = _NUMBERS[base[:-1]] + sign * int(tail)
            return number if signal.SIGRTMIN <= number <= signal.SIGRTMAX else 0
    return 0


def _hint(word: str) -> str:
    short = [name.removeprefix("SIG") for name in _NUMBERS]
    near = difflib.get_close_matches(word.removeprefix("SIG"), short, n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else "use a name such as TERM, or a number from 1 to 64"

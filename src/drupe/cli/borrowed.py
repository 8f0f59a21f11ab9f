"""Whether this process runs a command for a client outside, and how a verb declines that.

A fork of the warm process (`drupe.cli.warm`) has the client's descriptors but is not in its session, so job control
does not know it. What reads keys, or is to live longer than a command, is left to a process that is the client's own.
"""

from __future__ import annotations

_borrowed = False


class HandBack(BaseException):
    """The client shall run this command in a process of its own; nothing was done yet."""


def mark() -> None:
    """From now on this process works for a client."""
    global _borrowed  # noqa: PLW0603
    _borrowed = True


def needs_own_process() -> None:
    """Call it before anything was done. Raises HandBack in a process that works for a client."""
    if _borrowed:
        raise HandBack

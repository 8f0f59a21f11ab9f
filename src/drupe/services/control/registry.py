"""Which function serves which method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drupe.rpc.call import Call
    from drupe.services.control.service import ControlService

Serve = Callable[["ControlService", "Call"], Awaitable[Any]]
HANDLERS: dict[str, tuple[Serve, bool]] = {}


def method(name: str, *, changes: bool = False) -> Callable[[Serve], Serve]:
    """Register the function for `name`. changes: it alters state, so it runs to its end even if the caller goes
    away."""

    def register(function: Serve) -> Serve:
        HANDLERS[name] = (function, changes)
        return function

    return register

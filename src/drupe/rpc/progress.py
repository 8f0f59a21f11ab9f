"""What a client knows of one call: items not yet consumed, and how it ended. Shared by all kinds of stream."""

from __future__ import annotations

from collections import deque
from typing import Any

from drupe.errors import DataLoss, DrupeError, Unavailable, from_wire
from drupe.rpc.frames import Failure, Frame, Item, Result
from drupe.rpc.methods import decode_item, decode_result
from drupe.spec.control import Method


class Progress:
    """Items and outcome of one call. ended: no more will come. broken: ended without the peer's last word."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.items: deque[Any] = deque()
        self.ended = False
        self.broken = False
        self._result: Any = None
        self._error: DrupeError | None = None

    def take(self, frame: Frame) -> None:
        """Account for a frame of the call; one that makes no sense breaks it."""
        try:
            if isinstance(frame, Item):
                self.items.append(decode_item(self.method, frame.data))
            elif isinstance(frame, Result):
                self.succeed(decode_result(self.method, frame.data))
            elif isinstance(frame, Failure):
                self.fail(from_wire(frame.error))
            else:
                raise DataLoss(f"the daemon sent an unexpected {type(frame).__name__} frame")
        except DrupeError as error:
            self.break_off(error)

    def succeed(self, result: Any) -> None:
        """The call ended well."""
        self._result, self.ended = result, True

    def fail(self, error: DrupeError) -> None:
        """The call ended with an error of the peer."""
        self._error, self.ended = error, True

    def break_off(self, error: DrupeError) -> None:
        """The call ended on this side: lost connection, deadline, nonsense."""
        self.fail(error)
        self.broken = True

    def cancel(self) -> None:
        """This program gave the call up; nothing happens when it has ended."""
        if not self.ended:
            name = self.method.name
            self.break_off(Unavailable(f"{name} was cancelled by this program", may_have_run=True))

    def raise_error(self) -> None:
        """Raise what the call ended with, if it was an error."""
        if self._error is not None:
            raise self._error

    @property
    def result(self) -> Any:
        """The result. Raises the call's error; Unavailable when it has not ended."""
        self.raise_error()
        if not self.ended:
            raise Unavailable(f"{self.method.name} has not ended yet", may_have_run=True)
        return self._result

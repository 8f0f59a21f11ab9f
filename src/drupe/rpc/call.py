"""One call as its handler sees it, and how a handler is run: the same for the socket server and for embedded use."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from drupe.errors import DeadlineExceeded, DrupeError, InternalError, InvalidArgument
from drupe.linux.unix_sockets import Peer
from drupe.rpc.methods import check_fds, check_params, check_result, lookup
from drupe.rpc.timeouts import timeout

log = logging.getLogger("drupe.rpc")

Handler = Callable[["Call"], Awaitable[Any]]
Emit = Callable[[Any], Awaitable[None]]
Beside = Callable[[Coroutine[Any, Any, None]], None]


class Call:
    """A call being served.

    method: name in spec.control.METHODS. params: that method's params struct, validated. fds: name to descriptor,
    owned by the call: closed when the handler returns, unless taken. deadline_s: what the caller allows (None: no
    limit; the handler is cancelled when it passes). peer: credentials of the caller.
    """

    def __init__(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        emit: Emit | None = None,
        beside: Beside | None = None,
        deadline_s: float | None = None,
        peer: Peer | None = None,
    ) -> None:
        """Takes over `fds` even when it raises Unsupported (unknown method) or InvalidArgument (bad parameters)."""
        self.fds = dict(fds or {})
        self.method = method
        self.deadline_s = deadline_s
        self.peer = peer or Peer(os.getpid(), os.geteuid(), os.getegid())
        self.detached = False
        self.gone = False
        self._emit = emit
        self._beside = beside
        try:
            self.entry = lookup(method)
            check_fds(self.entry, self.fds)
            self.params = check_params(self.entry, params)
        except BaseException:
            self.close()
            raise

    def take_fd(self, name: str) -> int:
        """Hand the descriptor over to the handler, who closes it from now on. Raises InvalidArgument when not sent."""
        try:
            return self.fds.pop(name)
        except KeyError:
            raise InvalidArgument(f"{self.method} needs the descriptor {name!r}") from None

    async def send_item(self, item: Any) -> None:
        """Stream one item; waits while the caller reads slower than we write. Nothing is sent once `gone`."""
        if self._emit is not None and not self.gone:
            await self._emit(item)
        if self.gone:
            await asyncio.sleep(0)  # a handler that only sends would never see its cancellation

    def while_here(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, beyond the call's own end, until the caller hangs up: then it is cancelled. An embedded caller
        never hangs up, and `work` is dropped."""
        if self._beside is None:
            work.close()
        else:
            self._beside(work)

    def emit_with(self, emit: Emit) -> None:
        """Where items go from now on."""
        self._emit = emit

    def detach(self) -> None:
        """From now on the call runs to its end even when the caller cancels or goes away."""
        self.detached = True

    def close(self) -> None:
        """Close the descriptors that were not taken."""
        while self.fds:
            with contextlib.suppress(OSError):
                os.close(self.fds.popitem()[1])


async def serve_call(handler: Handler, call: Call) -> Any:
    """Run `handler` on `call` under its deadline; return the checked result. Raises only DrupeError."""
    timer = timeout(call.deadline_s)
    try:
        async with timer:
            result = await handler(call)
        return check_result(call.entry, result)
    except DrupeError as error:
        if isinstance(error, InternalError):
            log.exception("%s failed", call.method)
        raise
    except Exception as error:
        if isinstance(error, TimeoutError) and timer.expired():
            raise DeadlineExceeded(f"{call.method} took longer than {call.deadline_s:g} s", may_have_run=True) from None
        log.exception("%s failed", call.method)
        raise InternalError(
            f"{call.method} failed", cause=f"{type(error).__name__}: {error}", may_have_run=True
        ) from error
    finally:
        call.close()

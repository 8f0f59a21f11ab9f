"""A control server in a thread of the test, on a real unix socket, with whatever handler the test brings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drupe.rpc.server import Handler, Server


@contextmanager
def serving(path: Path, handler: Handler, *, root: str = "") -> Iterator[str]:
    """Serve `handler` at `path` while the block runs; yields the path as text. Fails if a call's task is left over.
    root: as of `Server`."""
    loop = asyncio.new_event_loop()
    server = Server(path, handler, root=root)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
        yield str(path)
    finally:
        asyncio.run_coroutine_threadsafe(server.close(grace_s=0.05), loop).result(5)
        left = asyncio.run_coroutine_threadsafe(_other_tasks(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
        assert left == []


async def _other_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]

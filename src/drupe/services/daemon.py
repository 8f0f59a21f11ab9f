"""The daemon: one core behind the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from drupe.errors import DrupeError
from drupe.runtime.paths import Paths
from drupe.state.journal import Journal

if TYPE_CHECKING:
    from drupe.runtime.core import Core

log = logging.getLogger("drupe")


def serve(
    *,
    root: Path,
    run: Path,
    socket: Path | None = None,
    config: Path | None = None,
    journal: type[Journal] = Journal,
) -> int:
    """Run until SIGTERM, SIGINT or `system.shutdown`. Returns the exit status. Pods outlive it. On SIGHUP the
    configuration is read again.

    Whoever started it may give a descriptor in DRUPE_READY_FD: one line is written there, "ready" or the error.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _raise_nofile()
    try:
        asyncio.run(_serve(Paths(root=root, run=run), socket, config, journal))
    except DrupeError as error:
        text = f"{error} (hint: {error.hint})" if error.hint else str(error)
        log.error("%s", text)
        _ready(f"error: {text}")
        return error.exit_code
    except OSError as error:
        log.error("%s", error)
        _ready(f"error: {error}")
        return 1
    return 0


async def _serve(paths: Paths, socket: Path | None, config: Path | None, journal: type[Journal]) -> None:
    from drupe.rpc.server import Server
    from drupe.services.build import open_core
    from drupe.services.containerd.front import Front
    from drupe.services.control import ControlService
    from drupe.services.warm import warm_command_line

    stop, shut_down = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_core(paths, journal=journal, config=config) as core:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _read_again, core, config)
        front = Front(core, socket=socket or paths.socket, config=config)
        service = ControlService(core, on_shutdown=shut_down.set, containerd=front)
        server = Server(socket or paths.socket, service.handle, root=str(paths.root.absolute()))
        with warm_command_line(paths.run):
            await front.open()
            service.open()
            await server.start()
            for note in core.node.notes:
                log.info("%s", note)
            log.info("serving %s", socket or paths.socket)
            _ready("ready")
            await _first(stop, shut_down)
            await server.close()
            service.close()
            await front.close(until_called=not shut_down.is_set())


async def _first(*events: asyncio.Event) -> None:
    """Until one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _read_again(core: Core, config: Path | None) -> None:
    """Take the node's default and policy from the file as it is now. While that cannot be read nothing new is made."""
    from drupe.services.nodeconfig import load_config

    try:
        core.node.config, core.node.closed = load_config(config), None
        log.info("configuration read again")
    except DrupeError as error:
        core.node.closed = error
        core.node.note(f"configuration: {error}; nothing new is made until it is mended")
        log.error("configuration: %s", error)


def _ready(line: str) -> None:
    """Tell the starter, once."""
    descriptor = os.environ.pop("DRUPE_READY_FD", None)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(int(descriptor), line.encode() + b"\n")
            os.close(int(descriptor))


def _raise_nofile() -> None:
    """A pod costs a few descriptors: take all that the host allows."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""A program in the place of cloud-hypervisor or firecracker: it judges each request by the published schema, and what
it has for a guest is an agent that runs elsewhere, behind a hybrid vsock socket of its own.

    fakevmm.py NAME DIRECTORY AGENT ARGUMENTS…

DIRECTORY gets the file `asked`. AGENT: the agent's socket.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from framework.vmmapi import Answer, Request, Schema, VmmApi
from framework.vmmodels import CloudModel, FireModel

PORT = b"CONNECT 1024\n"
LISTENS = ("PUT /vm.create", "PUT /vsock")  # the requests after which its vsock socket is there


def install(name: str, directory: Path, agent: Path) -> Path:
    """A command called `name` in `directory`."""
    command = directory / name
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} {directory} {agent} "$@"\n')
    command.chmod(0o755)
    return command


async def lead_to(agent: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection of the host's, as Firecracker's docs/vsock.md has it."""
    if await reader.readline() != PORT:
        writer.close()
        return
    writer.write(b"OK 1073741824\n")
    incoming, outgoing = await asyncio.open_unix_connection(str(agent))
    await asyncio.gather(_copy(reader, outgoing), _copy(incoming, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def run(name: str, told: Path, agent: Path, arguments: list[str]) -> None:
    """Until it is killed or told to end."""
    is_cloud = name == "cloud-hypervisor"
    flag = "--api-socket" if is_cloud else "--api-sock"
    control = Path(arguments[arguments.index(flag) + 1].removeprefix("path="))
    root = None
    if "--jailed" in arguments:  # what it names is below its root, and a socket's name is short
        os.chdir(control.parent)
        root, control = Path(), Path(control.name)
    model: Any = CloudModel(control.parent) if is_cloud else FireModel(root=root)
    over = asyncio.Event()

    def answer(request: Request) -> Answer | None:
        with (told / "asked").open("a") as file:
            file.write(f"{request} {request.body or ''}\n")
        found: Answer | None = model(request)
        if str(request) in LISTENS:
            place = str(control.with_name("vsock.sock"))
            booting.append(asyncio.ensure_future(asyncio.start_unix_server(lambda r, w: lead_to(agent, r, w), place)))
        if str(request) == "PUT /vmm.shutdown":
            over.set()
        return found

    booting: list[asyncio.Future[Any]] = []
    async with VmmApi(Schema.read(name), answer, base="/api/v1" if is_cloud else "").serving(control):
        await over.wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))

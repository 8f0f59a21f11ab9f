"""Port-forward for pods whose loopback is their own kernel's.

containerd dials 127.0.0.1 in the pod's network namespace of the host, where nobody listens of such a pod. So there a
rule leads all that is dialled on the loopback to one socket of ours, and what comes is dialled again inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from drupe.errors import DrupeError
from drupe.keeper.client import Keeper
from drupe.runtime.core import Core
from drupe.runtime.pod import Pod
from drupe.services.containerd.peers import OWNER
from drupe.spec.status import Event
from drupe.state.machine import State

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
_PORT = 4  # of the loopback there; what is dialled at it comes to it as it is
_CHUNK = 65536
_RULES = f"""add table ip drupe_door
delete table ip drupe_door
table ip drupe_door {{
  chain output {{
    type nat hook output priority -100
    ip daddr 127.0.0.0/8 ip protocol tcp tcp dport != {_PORT} dnat to 127.0.0.1:{_PORT}
  }}
}}
"""


class Doors:
    """One for each such pod of a containerd's that runs."""

    def __init__(self, core: Core, keeper: Keeper) -> None:
        self._core = core
        self._keeper = keeper
        self._open: dict[str, asyncio.Server] = {}

    async def watch(self) -> None:
        """Open and close them as pods come and go, for ever."""
        with self._core.node.events.listen() as events:
            for pod in list(self._core.pods.values()):
                await self._open_one(pod)
            while True:
                await self._hear(await events.get())

    def close(self) -> None:
        """Let go of them; the next daemon opens them again."""
        for pod_id in list(self._open):
            self._close_one(pod_id)

    async def _hear(self, event: Event) -> None:
        if event.type != "pod":
            return
        if event.action == "start" and (pod := self._core.pods.get(event.id)) is not None:
            await self._open_one(pod)
        elif event.action in ("stop", "fail", "destroy"):
            self._close_one(event.id)

    async def _open_one(self, pod: Pod) -> None:
        joined = pod.spec.network.mode == "path" and pod.spec.owner.startswith(OWNER)
        if not joined or not pod.sandboxer.dials or pod.state is not State.RUNNING or pod.id in self._open:
            return
        try:
            await self._keeper.run(["nft", "-f", "-"], netns=pod.info.netns, stdin=_RULES, check=True)
            fd = await self._keeper.netns_socket(pod.info.netns, socket.AF_INET, socket.SOCK_STREAM)
            listener = socket.socket(fileno=fd)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", _PORT))
            self._open[pod.id] = await asyncio.start_server(
                lambda reader, writer: self._forward(pod, reader, writer), sock=listener
            )
        except (DrupeError, OSError) as error:
            self._core.node.note(f"{pod.what}: ports are not forwarded: {error}")

    def _close_one(self, pod_id: str) -> None:
        if (server := self._open.pop(pod_id, None)) is not None:
            server.close()

    async def _forward(self, pod: Pod, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until both sides have said all; a port at which nobody listens inside ends it at once."""
        with contextlib.closing(writer), contextlib.suppress(DrupeError, OSError):
            inside = await pod.sandboxer.dial(pod.id, _port_of(writer.get_extra_info("socket")))
            there, back = await asyncio.open_connection(sock=inside)
            with contextlib.closing(back):
                await asyncio.gather(_copy(reader, back), _copy(there, writer))


def _port_of(sock: socket.socket) -> int:
    """The one that was dialled, before the rule led it here (a struct sockaddr_in)."""
    address = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
    port: int = struct.unpack_from("!H", address, 2)[0]
    return port


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """To the end, which is passed on."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()

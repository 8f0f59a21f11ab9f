"""The resolver of the built-in networks, on each bridge's gateway: pods' names itself, others from the host's servers.

A pod under a policy with DNS rules may use an address as soon as it has the answer: it is let through first.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, cast

from drupe.errors import AlreadyExists, Unavailable
from drupe.resources.network import dnsmessage as dns
from drupe.resources.network.directory import Directory
from drupe.resources.network.policy import dns_rules, may_ask
from drupe.resources.network.ports import program_on
from drupe.resources.network.records import Attached
from drupe.spec.control import NetworkInfo

OWN_TTL_S = 10
_UPSTREAM_TIMEOUT_S = 2.0
_TRIES = 2
_IDLE_S = 10.0
_MAX_PENDING = 64  # questions of one pod on their way at a time
_MAX_MESSAGE = 65535

Granted = tuple[IPv4Address | IPv6Address, int]  # address, for how many seconds
Grant = Callable[[Attached, str, Sequence[Granted]], Awaitable[None]]


class Resolver:
    """Serves the networks it is told to.

    servers: where questions go that no pod's name answers. grant: lets a pod reach addresses before it learns them.
    """

    def __init__(
        self, directory: Directory, *, servers: Callable[[Attached], Sequence[str]], grant: Grant, port: int
    ) -> None:
        self._directory = directory
        self._servers = servers
        self._grant = grant
        self._port = port
        self._serving: dict[str, list[asyncio.DatagramTransport | asyncio.Server]] = {}
        self._pending: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, network: NetworkInfo) -> None:
        """Begins to answer on the gateways of a network; no-op when it does. AlreadyExists: port 53 is taken there."""
        if network.name in self._serving or not network.dns:
            return
        opened = self._serving[network.name] = []
        try:
            for address in filter(None, (network.gateway4, network.gateway6)):
                opened += await self._open(address)
        except OSError as error:
            self.stop(network.name)
            owner = program_on("udp", self._port) or program_on("tcp", self._port)
            raise AlreadyExists(
                f"cannot serve DNS on network {network.name}" + (f": {owner} has the port" if owner else ""),
                stage="network",
                cause=error.strerror or str(error),
                hint="let it bind to its own addresses, or make the network without dns",
            ) from None

    def stop(self, network: str) -> None:
        """Ends serving a network; idempotent."""
        for opened in self._serving.pop(network, ()):
            opened.close()

    def close(self) -> None:
        for network in list(self._serving):
            self.stop(network)
        for task in self._tasks:
            task.cancel()

    async def answer(self, message: bytes, source: str, *, tcp: bool = False) -> bytes | None:
        """The answer to one message from one address; None when there is nothing to say."""
        if len(message) < 12 or message[2] & 0x80:
            return None
        try:
            question = dns.parse_question(message)
        except dns.BadMessage:
            return dns.error(message, dns.FORMERR)
        if not dns.is_plain_query(question):
            return dns.error(message, dns.NOTIMP)
        pod = self._directory.pod_at(str(ip_address(source.partition("%")[0])))
        if pod is None:
            return dns.error(message, dns.REFUSED)
        own = await self._own(pod, message, question)
        return own or await self._foreign(pod, message, question, tcp=tcp)

    # ── answers ──

    async def _own(self, pod: Attached, message: bytes, question: dns.Question) -> bytes | None:
        """The answer when the name is a pod's or the address a pod's."""
        if question.kind == dns.PTR and (asked := dns.reverse_address(question.name)):
            name = self._directory.name_at(pod, asked)
            if name is None:
                return None
            return dns.reply(message, question, [dns.record(dns.PTR, dns.encode_name(name), OWN_TTL_S)])
        found = self._directory.addresses(pod, question.name)
        if found is None:
            return None
        version = {dns.A: 4, dns.AAAA: 6}.get(question.kind)
        fitting = [address for text in found if (address := ip_address(text)).version == version]
        await self._let(pod, question.name, [(address, OWN_TTL_S) for address in fitting])
        return dns.reply(message, question, [dns.record(question.kind, a.packed, OWN_TTL_S) for a in fitting])

    async def _foreign(self, pod: Attached, message: bytes, question: dns.Question, *, tcp: bool) -> bytes:
        if pod.policy and not may_ask(pod.policy, question.name):
            return dns.error(message, dns.REFUSED)
        if self._pending.get(pod.pod_id, 0) >= _MAX_PENDING:
            return dns.error(message, dns.SERVFAIL)
        self._pending[pod.pod_id] = self._pending.get(pod.pod_id, 0) + 1
        try:
            response = await self._forward(message, self._servers(pod), tcp=tcp)
        except Unavailable:
            return dns.error(message, dns.SERVFAIL)
        finally:
            self._pending[pod.pod_id] -= 1
            if not self._pending[pod.pod_id]:
                del self._pending[pod.pod_id]
        with suppress(dns.BadMessage):
            await self._let(pod, question.name, [(a.address, a.ttl_s) for a in dns.addresses(response)])
        return response

    async def _let(self, pod: Attached, name: str, addresses: Sequence[Granted]) -> None:
        """Lets the pod reach what it is about to be told, where its policy speaks of the name."""
        if addresses and pod.policy and dns_rules(pod.policy, name):
            await self._grant(pod, name, addresses)

    # ── upstream ──

    async def _forward(self, message: bytes, servers: Sequence[str], *, tcp: bool) -> bytes:
        """Asks the servers in turn, with an id of our own. Raises Unavailable when none answers."""
        number = secrets.randbelow(0x10000)
        asked = dns.with_id(message, number)
        ask = _ask_tcp if tcp else _ask_udp
        for server in list(servers) * _TRIES:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                response = await asyncio.wait_for(ask(asked, server), _UPSTREAM_TIMEOUT_S)
                return message[:2] + response[2:]
        raise Unavailable("no DNS server answers")

    # ── sockets ──

    async def _open(self, address: str) -> list[asyncio.DatagramTransport | asyncio.Server]:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self._datagram), local_addr=(address, self._port)
        )
        try:
            return [transport, await asyncio.start_server(self._connection, address, self._port)]
        except OSError:
            transport.close()
            raise

    def _datagram(self, transport: asyncio.DatagramTransport, message: bytes, peer: tuple[Any, ...]) -> None:
        task = asyncio.get_running_loop().create_task(self._serve_datagram(transport, message, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_datagram(
        self, transport: asyncio.DatagramTransport, message: bytes, peer: tuple[Any, ...]
    ) -> None:
        response = await self.answer(message, peer[0])
        if response and not transport.is_closing():
            transport.sendto(response, peer)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A TCP client: messages with a length before each (RFC 1035, 4.2.2), until it is idle."""
        source = writer.get_extra_info("peername")[0]
        deadline = time.monotonic() + 12 * _IDLE_S
        try:
            while time.monotonic() < deadline:
                message = await asyncio.wait_for(_read_message(reader), _IDLE_S)
                response = await self.answer(message, source, tcp=True)
                if response is None:
                    return
                writer.write(len(response).to_bytes(2, "big") + response)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, receive: Callable[[asyncio.DatagramTransport, bytes, tuple[Any, ...]], None]) -> None:
        self._receive = receive
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if self._transport:
            self._receive(self._transport, data, addr)


async def _ask_udp(message: bytes, server: str) -> bytes:
    """One question from a port of its own; answers that do not belong to it are passed over."""
    loop = asyncio.get_running_loop()
    family, address = _target(server)
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
        client.connect(address)
        await loop.sock_sendall(client, message)
        while True:
            response = await loop.sock_recv(client, _MAX_MESSAGE)
            if dns.answers(message, response):
                return response


async def _ask_tcp(message: bytes, server: str) -> bytes:
    reader, writer = await asyncio.open_connection(server, 53)
    try:
        writer.write(len(message).to_bytes(2, "big") + message)
        await writer.drain()
        response = await _read_message(reader)
    finally:
        writer.close()
    if not dns.answers(message, response):
        raise OSError("an answer to another question")
    return response


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(2), "big")
    return await reader.readexactly(length)


def _target(server: str) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """The socket address of a server; a zone ("%eth0") is an interface."""
    text, _, zone = server.partition("%")
    if ":" in text:
        return socket.AF_INET6, (text, 53, 0, socket.if_nametoindex(zone) if zone else 0)
    return socket.AF_INET, (text, 53)

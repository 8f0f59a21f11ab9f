"""A private network to test in: the test's thread becomes a "host" of its own, pods and an outside world are other
namespaces. Nothing of the machine's own network is seen or touched.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PEER = Path(__file__).with_name("netpeer.py")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
OUT4, OUT6 = "192.0.2.1", "2001:db8::1"  # the outside world
HOST4, HOST6 = "192.0.2.2", "2001:db8::2"  # the host's address in it


def setns(fd: int) -> None:
    """setns(2) of this thread into a network namespace."""
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def inside(path: str | Path) -> Iterator[None]:
    """This thread in another network namespace for a while."""
    other = os.open(path, os.O_RDONLY)
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        setns(other)
        yield
    finally:
        setns(own)
        os.close(own)
        os.close(other)


@contextmanager
def private_host() -> Iterator[None]:
    """This thread in a new network namespace with loopback; threads started meanwhile are in it too."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        ip("link set lo up")
        yield
    finally:
        setns(own)
        os.close(own)


def ip(words: str) -> str:
    """ip(8)."""
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {words}: {done.stderr}"
    return done.stdout


class PeerError(OSError):
    """An OSError that happened in a peer."""


class Peer:
    """A network namespace with a program in it that serves and calls."""

    def __init__(self) -> None:
        words = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
        self._process = subprocess.Popen(
            [*words, sys.executable, "-I", "-S", str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n"
        self.netns = f"/proc/{self._process.pid}/ns/net"

    @property
    def pid(self) -> int:
        return self._process.pid

    def __call__(self, call: str, **arguments: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([call, arguments]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise PeerError(answer["errno"], f"{answer['error']}: {answer['text']}")
        return answer["ok"]

    def reaches(self, address: str, port: int, call: str = "tcp", **more: Any) -> bool:
        """Whether a server can be reached."""
        try:
            self(call, address=address, port=port, **more)
        except PeerError:
            return False
        return True

    def ip(self, words: str) -> str:
        with inside(self.netns):
            return ip(words)

    def sysctl(self, name: str, value: str) -> None:
        with inside(self.netns):
            (Path("/proc/sys") / name).write_text(value)

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()
        self._process.kill()
        self._process.wait()


def outside_world() -> Peer:
    """A namespace that is linked to the host's by a cable, with addresses OUT4 and OUT6; it has no way to pods."""
    world = Peer()
    ip(f"link add uplink type veth peer name far netns {world.pid}")
    for words in (f"addr add {HOST4}/24 dev uplink", f"addr add {HOST6}/64 dev uplink nodad", "link set uplink up"):
        ip(words)
    for words in (f"addr add {OUT4}/24 dev far", f"addr add {OUT6}/64 dev far nodad", "link set far up"):
        world.ip(words)
    return world


class MemoryRecords:
    """Records in memory, through JSON as durable ones would be."""

    def __init__(self) -> None:
        self.kinds: dict[str, dict[str, str]] = {}

    def put(self, kind: str, key: str, data: dict[str, Any]) -> None:
        self.kinds.setdefault(kind, {})[key] = json.dumps(data)

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        text = self.kinds.get(kind, {}).get(key)
        return json.loads(text) if text else None

    def delete(self, kind: str, key: str) -> None:
        self.kinds.get(kind, {}).pop(key, None)

    def all(self, kind: str) -> dict[str, dict[str, Any]]:
        return {key: json.loads(text) for key, text in self.kinds.get(kind, {}).items()}


class Finished:
    """As the keeper's RunResult."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.exit, self.signal, self.stdout, self.stderr, self.timed_out = code, 0, stdout, stderr, False


class LocalKeeper:
    """The keeper's calls that the network uses, done in this process, whose thread is the host."""

    def __init__(self) -> None:
        self.runs: list[tuple[Sequence[str], Mapping[str, str], str]] = []

    async def netns_socket(self, netns: Path | str, family: int, type: int, protocol: int = 0) -> int:
        with inside(netns):
            return socket.socket(family, type, protocol).detach()

    async def netns_open(self, netns: Path | str, path: str) -> int:
        with inside(netns):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        netns: Path | str | None = None,
        stdin: str | None = None,
        timeout_s: float = 30.0,
    ) -> Finished:
        self.runs.append((argv, env or {}, stdin or ""))
        words = ["nsenter", f"--net={netns}", *argv] if netns else [*argv]
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
        )
        out, err = await asyncio.wait_for(process.communicate((stdin or "").encode()), timeout_s)
        return Finished(process.returncode or 0, out.decode(), err.decode())


def nft(words: str, rules: str = "") -> str:
    """nft(8). rules: for "-f -"."""
    return subprocess.run(["nft", *words.split()], input=rules, capture_output=True, text=True, check=True).stdout


def ask_tcp(address: str, port: int, timeout_s: float = 3.0) -> str:
    """As a program of the host: what the server says."""
    with socket.create_connection((address, port), timeout=timeout_s) as connection:
        return connection.recv(2048).decode()


def ask_udp(address: str, port: int, timeout_s: float = 3.0) -> str:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        client.connect((address, port))
        client.send(b"?")
        return client.recv(2048).decode()


def dns_query(name: str, kind: int = 1, number: int = 0x1234) -> bytes:
    """A DNS question of class IN."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return number.to_bytes(2, "big") + b"\x01\0\0\1\0\0\0\0\0\0" + labels + b"\0" + kind.to_bytes(2, "big") + b"\0\1"


async def resolve(
    pod: Peer, server: str, name: str, kind: int = 1, *, tcp: bool = False
) -> tuple[int, list[str], bool]:
    """What a pod is told: code, addresses, whether it was truncated. In a thread: the server may be this loop."""
    from drupe.resources.network.dnsmessage import addresses

    packet = dns_query(name, kind)
    answer = bytes.fromhex(await asyncio.to_thread(pod, "query", server=server, packet=packet.hex(), tcp=tcp))
    assert answer[:2] == packet[:2]
    return answer[3] & 15, [str(found.address) for found in addresses(answer)], bool(answer[2] & 2)

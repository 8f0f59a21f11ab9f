"""The network of the application kernel: sockets of a network namespace, reached from within and from outside."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration.test_appkernel import KERNEL, PYTHON, TIMEOUT_S, _platform

pytestmark = pytest.mark.root
__all__ = ["_platform"]


class Network:
    """A network namespace with nothing but loopback, and programs in it: on Linux, or in the application kernel."""

    def __init__(self, holder: int) -> None:
        self.enter = ["nsenter", f"--net=/proc/{holder}/ns/net", "--"]

    def linux(self, *command: str) -> list[str]:
        return [*self.enter, *command]

    def here(self, *command: str, user: str = "0") -> list[str]:
        options = ["--network", "--root", "/", "--user", user, "--env", "HOME=/tmp"]
        return [*self.enter, str(KERNEL), "run", *options, "--", *command]

    def output(self, command: list[str]) -> str:
        """What a command says, which must end well."""
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def serving(self, command: list[str], port: int) -> Iterator[None]:
        """A server that runs meanwhile."""
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
            try:
                self.wait_for(port, server)
                yield
            finally:
                server.kill()

    def wait_for(self, port: int, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        probe = self.linux("bash", "-c", f": </dev/tcp/127.0.0.1/{port}")
        while subprocess.run(probe, capture_output=True, check=False).returncode:
            assert server.poll() is None, server.stderr and server.stderr.read()
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.1)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the pod sees, too: /tmp there is its own."""
    with tempfile.TemporaryDirectory(prefix="drupe-test-", dir="/opt") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A fresh network namespace, as long as its holder sleeps."""
    holder = subprocess.Popen(
        [
            "unshare",
            "--net",
            "sh",
            "-c",
            "ip link set lo up && echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start && echo && exec sleep 600",
        ],
        stdout=-1,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    yield Network(holder.pid)
    holder.kill()
    holder.wait()
    holder.stdout.close()


PROGRAMS = {
    "tcp": """
import asyncio, socket
async def sink(reader, writer):
    count = 0
    while data := await reader.read(65536): count += len(data)
    writer.write(str(count).encode()); await writer.drain(); writer.close()
async def main():
    for family, address in [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]:
        server = await asyncio.start_server(sink, address, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(b"x" * 3_000_000); await writer.drain(); writer.write_eof(); print(await reader.read())
asyncio.run(main())
listener = socket.create_server(("127.0.0.1", 0)); client = socket.create_connection(listener.getsockname())
peer, _ = listener.accept()
client.send(b"!", socket.MSG_OOB)
import select, struct
print(select.select([], [], [peer], 5)[2] == [peer], peer.recv(1, socket.MSG_OOB))
print(client.getsockopt(6, 1), client.setsockopt(6, 1, 1), client.getsockopt(6, 1) > 0)
print(len(client.getsockopt(6, 11, 104)))
peer.setsockopt(1, 13, struct.pack("ii", 1, 0)); peer.close()
try: client.recv(1)
except OSError as error: print(error.errno)
client = socket.create_connection(listener.getsockname()); peer, _ = listener.accept()
with open("/etc/passwd", "rb") as file: count = client.sendfile(file)
client.shutdown(socket.SHUT_WR); print(count == sum(len(part) for part in iter(lambda: peer.recv(999), b"")))
""",
    "udp": """
import socket
def of(call, *args):
    try: return call(*args)
    except OSError as error: return type(error).__name__, error.errno
one, two = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in "12")
one.bind(("127.0.0.1", 0)); one.setsockopt(0, 12, 1); two.setsockopt(0, socket.IP_TTL, 7)
two.sendto(b"datagram", one.getsockname()); print(one.recvmsg(4, 100)[:3])
one.settimeout(0.1); print(of(one.recv, 9))
two.connect(("127.0.0.1", 9)); two.send(b"x"); print(of(two.recv, 9))
print(of(socket.socket, 2, 77), of(socket.socket, 17, 2), of(socket.socket, 2, 1, 17))
""",
    "names": """
import ctypes, fcntl, socket, struct
print(socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)[0][4], socket.if_nameindex())
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(fcntl.ioctl(asker, 0x8915, struct.pack("40s", b"lo"))[20:24])
print(fcntl.ioctl(asker, 0x8912, struct.pack("iPP", 0, 0, 0))[:4])
print(fcntl.ioctl(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), 0x8933, struct.pack("40s", b"lo"))[16:20])
print(open("/proc/net/tcp").readline(), "lo:" in open("/proc/net/dev").read())
""",
    "errors kept": """
import socket
def of(call, *args):
    try: return call(*args)
    except OSError as error: return error.errno
listener = socket.create_server(("127.0.0.1", 0)); sock = socket.create_connection(listener.getsockname())
print(of(sock.recv, 1, 0x2000), of(sock.recv, 1, socket.MSG_OOB))
""",
    "cut messages": """
import socket
receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); receiver.bind(("::1", 0))
for option in (socket.IPV6_RECVTCLASS, socket.IPV6_RECVHOPLIMIT): receiver.setsockopt(socket.IPPROTO_IPV6, option, 1)
sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
for room in (socket.CMSG_SPACE(4), socket.CMSG_SPACE(4) + 1, socket.CMSG_SPACE(4) + socket.CMSG_LEN(2), 9, 999):
    sender.sendto(b"x", receiver.getsockname()); data, parts, flags, _ = receiver.recvmsg(9, room)
    print(data, [(level, kind, len(part)) for level, kind, part in parts], flags)
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_on_linux(network: Network, name: str) -> None:
    """Values, errors and readiness of TCP, UDP and what programs ask of interfaces, in the same network."""
    command = [PYTHON, "-I", "-c", PROGRAMS[name]]
    if name == "udp":
        command[-1] += "\nprint(of(socket.socket, 2, 3, 1)[0])"
        expected = network.output(
            ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", *network.linux(*command)]
        )
    else:
        expected = network.output(network.linux(*command))
    assert network.output(network.here(*command)) == expected


def test_addresses_are_shown(network: Network) -> None:
    """iproute2 asks by netlink; it may ask, and change nothing."""
    ip = "/usr/sbin/ip"
    assert network.output(network.here(ip, "-o", "addr")) == network.output(network.linux(ip, "-o", "addr"))
    changed = subprocess.run(
        network.here(ip, "addr", "add", "10.9.9.9/32", "dev", "lo"), capture_output=True, text=True, check=False
    )
    assert changed.returncode != 0 and "10.9.9.9" not in network.output(network.linux(ip, "addr"))


def test_a_server_is_reached_from_both_sides(network: Network, place: Path) -> None:
    """What listens on all addresses is there for Linux in that network, for another pod, and on a privileged port."""
    (place / "word").write_text("reached")
    server = network.here(PYTHON, "-m", "http.server", "--directory", str(place), "80")
    client = "import urllib.request as r; print(r.urlopen('http://127.0.0.1/word').read())"
    with network.serving(server, 80):
        assert network.output(network.linux(PYTHON, "-c", client)) == "b'reached'\n"
        assert network.output(network.here(PYTHON, "-c", client)) == "b'reached'\n"


def test_privileged_ports_want_the_capability(network: Network) -> None:
    """The guest's own capabilities decide, not those of the kernel's process."""
    bind = "import socket; s = socket.socket(); s.bind(('', 90))"
    assert network.output(network.here(PYTHON, "-c", bind)) == ""
    done = subprocess.run(network.here(PYTHON, "-c", bind, user="1000"), capture_output=True, text=True, check=False)
    assert "PermissionError: [Errno 13]" in done.stderr


def test_without_a_network_nothing_leads_out() -> None:
    """By default a pod's loopback is its own: the host's listeners are not there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        connect = f"import socket; s = socket.socket(); print(s.connect_ex(('127.0.0.1', {port})))"
        argv = [str(KERNEL), "run", "--root", "/", "--", PYTHON, "-c", connect]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.stdout == "111\n", done.stderr


def test_an_idle_listener_takes_no_time(network: Network) -> None:
    """Waiting for connections costs nothing."""
    server = network.here(PYTHON, "-m", "http.server", "8099")
    with network.serving(server, 8099):
        name = subprocess.run(["pgrep", "-f", "http.server 8099"], capture_output=True, text=True, check=True)
        pids = [pid for pid in name.stdout.split() if Path(f"/proc/{pid}/stat").exists()]

        def ticks() -> int:
            fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
            return sum(int(words[11]) + int(words[12]) for words in fields)

        time.sleep(0.5)
        before = ticks()
        time.sleep(1)
        assert ticks() - before <= 2

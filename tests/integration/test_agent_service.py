"""The guest's agent as a service, without a machine: its protocol, what it refuses, and that nobody can harm it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from drupe.errors import (
    AlreadyExists,
    DeadlineExceeded,
    DrupeError,
    InvalidArgument,
    InvalidState,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from drupe.guest.build import find_agent
from drupe.rpc.guest import guest_pb2 as pb
from drupe.rpc.ttrpc.frames import Frame, Kind, encode
from drupe.sandboxers.vm.agent import Agent
from drupe.sandboxers.vm.dialling import Dialler
from framework.agentservice import AgentService
from framework.aio import until
from framework.guestline import GUEST, Line
from framework.guestvm import config

pytestmark = pytest.mark.root
MAC = "52:54:00:00:00:05"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentService]:
    """One agent for all tests here."""
    agent = AgentService(tmp_path_factory.mktemp("agent"))
    try:
        yield agent
    finally:
        agent.close()


def on(agent: AgentService, work: object, *, mark: bool = True) -> object:
    """Run work(line) on a connection of its own."""

    async def connected() -> object:
        line = await Line.connect(agent.path, mark=mark)
        try:
            return await work(line)  # type: ignore[operator]
        finally:
            await line.close()

    return asyncio.run(connected())


def test_a_connection_may_begin_with_a_mark_or_without(agent: AgentService) -> None:
    for mark in (True, False):
        said = on(agent, lambda line: line.guest("Check", pb.CheckRequest(protocol=1)), mark=mark)
        assert said.protocol == 1  # type: ignore[attr-defined]
        assert said.kernel == os.uname().release  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "request_", "error", "words"),
    [
        ("Check", pb.CheckRequest(protocol=2), InvalidState, "speaks protocol 1, the host protocol 2"),
        ("PutBundle", pb.PutBundleRequest(id="../x"), InvalidArgument, "is no id"),
        ("PutBundle", pb.PutBundleRequest(id="x", config_json=b"{"), InvalidArgument, "config.json"),
        ("PutBundle", pb.PutBundleRequest(id="x", config_json=b"{}"), InvalidArgument, "no rootfs"),
        ("ReadOutput", pb.ReadOutputRequest(id="nobody"), NotFound, 'no container "nobody"'),
        ("Processes", pb.ProcessesRequest(id="nobody"), NotFound, 'no container "nobody"'),
        ("CopyOut", pb.CopyOutRequest(id="nobody", path="/"), NotFound, 'no container "nobody"'),
        ("Mount", pb.MountRequest(mount=pb.GuestMount(type="tmpfs", target="a")), InvalidArgument, "is not absolute"),
        ("Mount", pb.MountRequest(mount=pb.GuestMount(type="tmpfs", target="/a"), id="no"), NotFound, "no container"),
        ("AwaitDevice", pb.AwaitDeviceRequest(), InvalidArgument, "one of disk_serial, mac and pci"),
        ("SetSysctls", pb.SetSysctlsRequest(sysctls={"../x": "1"}), InvalidArgument, "is no sysctl"),
        ("SetSysctls", pb.SetSysctlsRequest(sysctls={"net.nothing": "1"}), NotFound, "net.nothing=1"),
        ("Renew", pb.RenewRequest(entropy=b"1"), InvalidArgument, "32 bytes of entropy"),
        ("SetInterfaces", pb.SetInterfacesRequest(interfaces=[pb.Interface(name="no")]), NotFound, "interface no"),
        ("SetRoutes", pb.SetRoutesRequest(routes=[pb.Route(gateway="x")]), InvalidArgument, "route default via x"),
        ("SetRoutes", pb.SetRoutesRequest(routes=[pb.Route(interface="no")]), NotFound, 'no interface "no"'),
        ("SetRoutes", pb.SetRoutesRequest(routes=[pb.Route(destination="::/0", gateway="10.0.0.1")]), InvalidArgument,
         "another family"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_in_words(
    agent: AgentService, method: str, request_: object, error: type[DrupeError], words: str
) -> None:
    with pytest.raises(error) as raised:
        on(agent, lambda line: line.guest(method, request_))
    assert words in str(raised.value)


def test_unknown_services_methods_and_nonsense_for_a_message(agent: AgentService) -> None:
    async def work(line: Line) -> None:
        for service, method, words in (
            ("no.Service", "Check", "no service"),
            (GUEST, "Nothing", "no method"),
            ("containerd.task.v3.Task", "Nothing", "no method"),
            ("containerd.task.v3.Task", "Checkpoint", "save the machine instead"),
        ):
            with pytest.raises(Unsupported, match=words):
                await line.client.call(service, method, Empty(), Empty, timeout_s=10)
        nonsense = pb.CheckResponse(protocol=1, features=["\x07" * 9])  # field 3 of a CheckRequest is nobody's
        assert (await line.guest("Check", nonsense)).protocol == 1
        with pytest.raises(InvalidArgument, match="not the message of this method"):
            await line.guest("Shutdown", pb.CheckRequest(host_version="x"))

    on(agent, work)


def test_interfaces_and_routes_without_a_machine(agent: AgentService) -> None:
    async def work(line: Line) -> None:
        wanted = pb.Interface(
            device=pb.Device(mac=MAC),
            name="pod0",
            mac=MAC,
            mtu=1300,
            addresses=["10.1.0.2/24", "fd00:1::2/64"],
            up=True,
        )
        await line.guest("SetInterfaces", pb.SetInterfacesRequest(interfaces=[wanted]))
        routes = [pb.Route(gateway="10.1.0.1"), pb.Route(destination="10.2.0.0/16", interface="pod0", metric=5)]
        await line.guest("SetRoutes", pb.SetRoutesRequest(routes=routes))
        (link,) = json.loads(agent.inside("ip", "-j", "address", "show", "pod0"))
        assert (link["mtu"], link["address"]) == (1300, MAC)
        assert {"UP"} <= set(link["flags"])
        addresses = {f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["scope"] == "global"}
        assert addresses == {"10.1.0.2/24", "fd00:1::2/64"}
        table = {
            (one["dst"], one.get("gateway"), one.get("metric"))
            for one in json.loads(agent.inside("ip", "-j", "route"))
            if one.get("protocol") == "static"
        }
        assert table == {("default", "10.1.0.1", None), ("10.2.0.0/16", None, 5)}
        # the same again changes nothing; another set replaces it, and another address of the same network stays
        await line.guest("SetInterfaces", pb.SetInterfacesRequest(interfaces=[wanted]))
        del wanted.addresses[:]
        wanted.addresses.extend(["10.1.0.3/24", "10.1.0.4/24"])
        await line.guest("SetInterfaces", pb.SetInterfacesRequest(interfaces=[wanted]))
        await line.guest("SetRoutes", pb.SetRoutesRequest())
        said = await line.guest("ListInterfaces")
        (pod0,) = [one for one in said.interfaces if one.name == "pod0"]
        assert sorted(one for one in pod0.addresses if "." in one) == ["10.1.0.3/24", "10.1.0.4/24"]
        assert not said.routes
        # names are exchanged with another interface that has them
        swapped = pb.Interface(device=pb.Device(mac=MAC), name="other", up=True)
        await line.guest("SetInterfaces", pb.SetInterfacesRequest(interfaces=[swapped]))
        assert MAC in agent.inside("cat", "/proc/net/dev") or "other" in agent.inside("ip", "-br", "link")
        (link,) = json.loads(agent.inside("ip", "-j", "link", "show", "other"))
        assert link["address"] == MAC

    on(agent, work)


def test_names_and_files_of_a_pod(agent: AgentService) -> None:
    async def work(line: Line) -> None:
        request = pb.SetupRequest(
            hostname="a-pod", resolv_conf=b"nameserver 10.0.0.1\n", hosts=b"127.0.0.1 localhost\n",
            sysctls={"net.ipv4.ip_unprivileged_port_start": "81"}, shm_size_bytes=1 << 20,
        )  # fmt: skip
        await line.guest("Setup", request)
        with pytest.raises(InvalidState, match="set up already"):
            await line.guest("Setup", request)
        assert agent.inside("hostname") == "a-pod\n"
        assert agent.inside("cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start") == "81\n"

    on(agent, work)


def test_a_bundle_is_made_for_this_guest_and_only_once(agent: AgentService, tmp_path: Path) -> None:
    async def work(line: Line) -> None:
        spec = json.loads(config("true"))
        spec["root"]["path"] = str(tmp_path)
        spec["linux"]["namespaces"] += [{"type": "network", "path": "/proc/1/ns/net"}, {"type": "uts"}]
        spec["linux"]["cgroupsPath"] = "/../escape"
        request = pb.PutBundleRequest(id="one", config_json=json.dumps(spec).encode())
        put = await line.guest("PutBundle", request)
        assert put.rootfs == str(tmp_path)
        fitted = json.loads((Path(put.bundle) / "config.json").read_text())
        assert [one["type"] for one in fitted["linux"]["namespaces"]] == ["pid", "mount"]
        assert fitted["linux"]["cgroupsPath"] == "/drupe/one"
        with pytest.raises(AlreadyExists):
            await line.guest("PutBundle", request)
        with pytest.raises(InvalidArgument, match="the bundle of one is"):
            await line.task("Create", id="one", bundle="/elsewhere")
        with pytest.raises(InvalidState, match="is Prepared, not Created"):
            await line.task("Start", id="one")
        await line.task("Delete", id="one")
        with pytest.raises(NotFound):
            await line.task("State", id="one")
        assert not Path(put.bundle).exists()

    on(agent, work)


def test_a_call_that_waits_ends_with_its_time_and_with_its_connection(agent: AgentService) -> None:
    device = pb.AwaitDeviceRequest(device=pb.Device(disk_serial="never"))

    async def in_time(line: Line) -> None:
        hurried = pb.AwaitDeviceRequest(device=device.device, timeout_ms=50)
        with pytest.raises(DeadlineExceeded):
            await line.guest("AwaitDevice", hurried)

    async def wait(line: Line) -> None:
        calls = [asyncio.ensure_future(line.guest("AwaitDevice", device, timeout_s=None)) for _ in range(100)]
        await line.guest("Check", pb.CheckRequest(protocol=1))
        await until(lambda: agent.threads() >= 100)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    on(agent, in_time)
    for _ in range(3):
        on(agent, wait)
    assert agent.threads() < 250, "the threads of calls whose callers have gone serve others"


def test_more_calls_than_the_limit_are_refused_and_the_others_go_on(agent: AgentService) -> None:
    async def work(line: Line) -> None:
        device = pb.AwaitDeviceRequest(device=pb.Device(disk_serial="never"))
        calls = [asyncio.ensure_future(line.guest("AwaitDevice", device, timeout_s=None)) for _ in range(300)]
        done, waiting = await asyncio.wait(calls, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(DrupeError, match="256 calls are open"):
            next(iter(done)).result()
        assert len(waiting) >= 256 - 1
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    on(agent, work)


@pytest.mark.parametrize(
    "bytes_",
    [
        b"\x7f\xff\xff\xff\x00\x00\x00\x01\x01\x00" + bytes(1 << 20),  # a frame of 2 GiB, of which a part comes
        b"\x00\x40\x00\x00\x00\x00\x00\x01\x01\x00",  # one of 4 MiB, of which nothing comes
        b"\x00\x00\x00\x05\x00\x00\x00\x01\x01\x01nonse",
        encode(Frame(2, Kind.REQUEST, 0, b"")) * 2000,  # even ids
        encode(Frame(9, Kind.RESPONSE, 0, b"x")) * 2000,
        encode(Frame(7, Kind.DATA, 0, bytes(70_000))) * 100,  # data of no call
        encode(Frame(1, 77, 255, b"")) * 3,
        bytes(range(256)) * 400,
    ],
    ids=["2 GiB", "4 MiB", "nonsense", "even", "answers", "stray", "kind", "octets"],
)
def test_frames_from_a_broken_host_harm_nobody(agent: AgentService, bytes_: bytes) -> None:
    before = agent.rss_bytes()

    async def work(line: Line) -> None:
        sock_reader, writer = await asyncio.open_unix_connection(str(agent.path))
        reading = asyncio.ensure_future(sock_reader.read())
        writer.write(bytes_)
        await writer.drain()
        assert (await line.guest("Check", pb.CheckRequest(protocol=1))).protocol == 1
        writer.close()
        await asyncio.wait([reading], timeout=10)

    on(agent, work)
    assert agent.process.poll() is None
    assert agent.rss_bytes() - before < 6 << 20


def test_a_host_that_never_reads_stops_itself_alone(agent: AgentService) -> None:
    async def work(line: Line) -> None:
        _, writer = await asyncio.open_unix_connection(str(agent.path))
        check = encode(Frame(0, Kind.REQUEST, 1, b"\x0a\x05bogus"))
        for stream in range(1, 8001, 2):
            writer.write(stream.to_bytes(4, "big").join((check[:4], check[8:])))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await writer.drain()
                await asyncio.Event().wait()
        assert (await line.guest("Check", pb.CheckRequest(protocol=1))).protocol == 1
        writer.transport.abort()

    on(agent, work)


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    for words, said in (
        (["--service", "--channel", "pigeon"], 'no channel "pigeon"'),
        (["--service", "--channel"], "--channel needs a value"),
        ([], "not PID 1"),
    ):
        argv = [str(find_agent()), *words, *(["--run-dir", str(tmp_path)] if len(words) == 3 else [])]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
        assert done.returncode == 2
        assert said in done.stderr
        assert "usage:" in done.stderr


_ECHO = """
import os, socket, threading
def serve(connection):
    with connection:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.sendall(b"the end")
        except OSError:
            pass
    os.write(1, b"over\\n")
def accept(listener):
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],)).start()
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    listener = socket.create_server((address, 0), family=family, backlog=128)
    threading.Thread(target=accept, args=(listener,)).start()
    os.write(1, b"%d\\n" % listener.getsockname()[1])
"""


@pytest.fixture
def echo(agent: AgentService) -> Iterator[subprocess.Popen[str]]:
    """A server on a port of each loopback, whose numbers it prints; then "over" for each connection that has ended."""
    program = ["nsenter", "--target", str(agent.process.pid), "--net", "--", sys.executable, "-c", _ECHO]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server
        finally:
            server.kill()


def test_connections_to_ports_of_its_loopback(agent: AgentService, echo: subprocess.Popen[str]) -> None:
    """Bytes both ways, each direction's end, more than buffers hold, and nothing left when the host hangs up."""
    assert echo.stdout is not None
    ports = [int(echo.stdout.readline()) for _ in range(2)]
    for port in ports:
        on(agent, lambda line, port=port: _echoed(line, port))
        asyncio.run(_carried(agent, port))
    on(agent, lambda line: _disconnected(line, ports[0]))
    on(agent, lambda line: _refused(line, ports[0]))  # and ends with 64 open ones
    assert [echo.stdout.readline() for _ in range(4 + 1 + 64)] == ["over\n"] * 69


async def _echoed(line: Line, port: int) -> None:
    made = await line.guest("Connect", pb.ConnectRequest(port=port))
    sent = os.urandom(3 << 20)
    coming = asyncio.ensure_future(line.output("", made.exec_id))
    for begin in range(0, len(sent), 1 << 20):
        part = sent[begin : begin + (1 << 20)]
        await line.guest("WriteInput", pb.WriteInputRequest(exec_id=made.exec_id, data=part))
    await line.guest("WriteInput", pb.WriteInputRequest(exec_id=made.exec_id, close=True))
    assert await coming == sent + b"the end"
    await line.guest("Disconnect", pb.DisconnectRequest(exec_id=made.exec_id))
    with pytest.raises(NotFound, match="no connection"):
        await line.output("", made.exec_id)


async def _carried(service: AgentService, port: int) -> None:
    """The same by the host's own part."""
    agent, dialler = Agent(lambda: asyncio.open_unix_connection(str(service.path))), Dialler()
    await agent.connect(timeout_s=30)
    try:
        with pytest.raises(DrupeError, match="cannot connect to port 1: Connection refused"):
            await dialler.dial(agent, 1)
        reader, writer = await asyncio.open_connection(sock=await dialler.dial(agent, port))
        sent = os.urandom(3 << 20)
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == sent + b"the end"
        writer.close()
    finally:
        dialler.close()
        await agent.close()


async def _disconnected(line: Line, port: int) -> None:
    """Who waits for its bytes is not left waiting."""
    made = await line.guest("Connect", pb.ConnectRequest(port=port))
    coming = asyncio.ensure_future(line.output("", made.exec_id))
    await asyncio.sleep(0.05)
    await line.guest("Disconnect", pb.DisconnectRequest(exec_id=made.exec_id))
    assert await coming == b""


async def _refused(line: Line, port: int) -> None:
    with pytest.raises(InvalidArgument, match="ports are 1 to 65535"):
        await line.guest("Connect", pb.ConnectRequest(port=0))
    for _ in range(64):
        await line.guest("Connect", pb.ConnectRequest(port=port))
    with pytest.raises(ResourceExhausted, match="64 connections are open"):
        await line.guest("Connect", pb.ConnectRequest(port=port))
    await line.guest("Disconnect", pb.DisconnectRequest(exec_id="nobody's"))

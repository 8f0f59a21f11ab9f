"""The guest's agent on arbitrary frames and messages: it lives, and answers the next host."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.errors import DrupeError
from drupe.rpc.guest import guest_pb2 as pb
from drupe.rpc.ttrpc.envelope import request
from drupe.rpc.ttrpc.frames import Frame, Kind, encode
from framework.agentservice import AgentService
from framework.fuzzing import rounds
from framework.guestline import GUEST, TASK, Line

pytestmark = pytest.mark.root

# what would end the agent, or change what no namespace holds (clock, entropy, processors), is left out
METHODS = (
    "Check", "PutBundle", "ReadOutput", "WriteInput", "Processes", "CopyIn", "CopyOut", "SetInterfaces", "SetRoutes",
    "ListInterfaces", "Mount", "Unmount", "Metrics", "Events",
)  # fmt: skip
TASKS = (
    "State",
    "Create",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
)
octets = st.integers(0, 255)
frames = st.builds(Frame, st.integers(0, 9), octets, octets, st.binary(max_size=60))
calls = st.one_of(st.tuples(st.just(GUEST), st.sampled_from(METHODS)), st.tuples(st.just(TASK), st.sampled_from(TASKS)))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentService]:
    agent = AgentService(tmp_path_factory.mktemp("agent"))
    try:
        yield agent
    finally:
        agent.close()


async def lives(agent: AgentService) -> None:
    line = await Line.connect(agent.path)
    assert (await line.guest("Check", pb.CheckRequest(protocol=1))).protocol == 1
    await line.close()


async def send(agent: AgentService, data: bytes) -> None:
    """Send, wait for what comes within a moment, hang up."""
    reader, writer = await asyncio.open_unix_connection(str(agent.path))
    writer.write(data)
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(0.05):
            await reader.read()
    writer.transport.abort()


def test_frames(agent: AgentService) -> None:
    @settings(max_examples=rounds(60), deadline=None)
    @given(
        st.one_of(st.binary(max_size=400), st.lists(frames, max_size=12).map(lambda sent: b"".join(map(encode, sent))))
    )
    def try_(data: bytes) -> None:
        asyncio.run(send(agent, data))
        assert agent.process.poll() is None

    try_()
    asyncio.run(lives(agent))


def test_messages(agent: AgentService) -> None:
    @settings(max_examples=rounds(120), deadline=None)
    @given(calls, st.binary(max_size=120))
    def try_(call: tuple[str, str], payload: bytes) -> None:
        data = request(*call, payload, timeout_s=0.05, metadata={})
        asyncio.run(send(agent, encode(Frame(1, Kind.REQUEST, 1, data))))
        assert agent.process.poll() is None

    try_()
    asyncio.run(lives(agent))


def test_requests_of_the_right_shape(agent: AgentService) -> None:
    texts = st.text(max_size=30)
    interface = st.builds(
        lambda name, mac, mtu, addresses: pb.Interface(name=name, mac=mac, mtu=mtu, addresses=addresses),
        st.one_of(st.just("other"), texts), texts, st.integers(0, 2**32 - 1), st.lists(texts, max_size=2),
    )  # fmt: skip
    route = st.builds(
        lambda where, via, device, scope: pb.Route(destination=where, gateway=via, interface=device, scope=scope),
        st.one_of(st.just("10.0.0.0/8"), texts), texts, st.one_of(st.just("other"), texts), st.integers(0, 999),
    )  # fmt: skip

    async def ask(link: pb.Interface, way: pb.Route, path: str) -> None:
        line = await Line.connect(agent.path)
        for method, message in (
            ("SetInterfaces", pb.SetInterfacesRequest(interfaces=[link])),
            ("SetRoutes", pb.SetRoutesRequest(routes=[way])),
            ("PutBundle", pb.PutBundleRequest(id=path, config_json=path.encode())),
            ("CopyOut", pb.CopyOutRequest(id=path, path=path)),
        ):
            with contextlib.suppress(DrupeError):
                await line.guest(method, message, timeout_s=5)
        await line.close()

    @settings(max_examples=rounds(40), deadline=None)
    @given(interface, route, texts)
    def try_(link: pb.Interface, way: pb.Route, path: str) -> None:
        asyncio.run(ask(link, way, path))
        assert agent.process.poll() is None

    try_()
    asyncio.run(lives(agent))

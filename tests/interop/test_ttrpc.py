"""ttrpc with others: the Rust crate for every form of call in both directions, and containerd's shim (Go)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as TwoStrings
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue, UInt32Value

from drupe.errors import DrupeError, NotFound, Unsupported
from drupe.rpc.ttrpc import Call, Client, Server, ServerStream, streaming, unary
from framework.aio import until
from framework.leaks import wait_until
from framework.probes import needs_program, needs_root

SOURCE = Path(__file__).parent / "ttrpc-peer"
BUILD_TIMEOUT_S = 600
SHIM = "containerd-shim-runc-v2"


@pytest.fixture(scope="session")
def peer() -> Path:
    """The program of tests/interop/ttrpc-peer, built once for every clone of this machine."""
    needs_program("cargo", "cc")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drupe/ttrpc-peer"
    build = ["cargo", "build", "--quiet", "--locked"]
    env = {**os.environ, "CARGO_TARGET_DIR": str(cache)}
    offline = subprocess.run(
        [*build, "--offline"], cwd=SOURCE, env=env, timeout=BUILD_TIMEOUT_S, check=False, stderr=subprocess.DEVNULL
    )
    if offline.returncode != 0:
        subprocess.run(build, cwd=SOURCE, env=env, timeout=BUILD_TIMEOUT_S, check=True)
    return cache / "debug/ttrpc-peer"


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(limited())


async def say(_: Call, message: StringValue) -> StringValue:
    return StringValue(value=f"you said {message.value}")


async def fail(_: Call, message: StringValue) -> StringValue:
    raise NotFound("no such thing")


async def gather(_: Call, stream: ServerStream[StringValue, Any]) -> StringValue:
    return StringValue(value="".join([part.value async for part in stream]))


async def split(_: Call, stream: ServerStream[StringValue, StringValue]) -> None:
    async for whole in stream:
        for part in whole.value.split():
            await stream.send(StringValue(value=part))


async def talk(_: Call, stream: ServerStream[StringValue, StringValue]) -> None:
    async for part in stream:
        await stream.send(part)


ECHO = {
    "Say": unary(StringValue, say),
    "Fail": unary(StringValue, fail),
    "Gather": streaming(StringValue, gather, requests=True, answers=False),
    "Split": streaming(StringValue, split, requests=False, answers=True),
    "Talk": streaming(StringValue, talk, requests=True, answers=True),
}


@pytest.mark.timeout(BUILD_TIMEOUT_S + 60)
def test_the_rust_client_calls_us(peer: Path, tmp_path: Path) -> None:
    async def test() -> None:
        server = Server({"t.Echo": ECHO})
        await server.listen(tmp_path / "s")
        process = await asyncio.create_subprocess_exec(peer, "call", tmp_path / "s", stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        await server.close()
        assert process.returncode == 0
        assert output.decode().splitlines() == [
            "you said hello",
            "NOT_FOUND no such thing",
            "UNIMPLEMENTED service t.Echo has no method 'Nope'",
            "abc",
            "one",
            "two",
            "x",
            "y",
            "end",
        ]

    run(test)


@pytest.fixture
def rust_server(peer: Path, tmp_path: Path) -> Iterator[Path]:
    """The socket of the Rust peer as a server."""
    process = subprocess.Popen([peer, "serve", tmp_path / "s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield tmp_path / "s"
    finally:
        process.communicate(timeout=30)  # the end of its input is its end


@pytest.mark.timeout(BUILD_TIMEOUT_S + 60)
def test_we_call_the_rust_server(rust_server: Path) -> None:
    async def test() -> None:
        async with await Client.connect(rust_server) as client:
            hello = StringValue(value="hello")
            said = await client.call("t.Echo", "Say", hello, StringValue, timeout_s=30, metadata={"name": ["a", "b"]})
            assert said.value == "hello a+b 30"
            with pytest.raises(NotFound, match="no such thing"):
                await client.call("t.Echo", "Fail", hello, StringValue)
            with pytest.raises(DrupeError):  # it answers INVALID_ARGUMENT where Go says UNIMPLEMENTED
                await client.call("t.Echo", "Nope", hello, StringValue)
            async with client.stream("t.Echo", "Gather", StringValue) as stream:
                for part in "abc":
                    await stream.send(StringValue(value=part))
                assert (await stream.result()).value == "abc"
            async with client.stream("t.Echo", "Split", StringValue, StringValue(value="one two")) as stream:
                assert [part.value async for part in stream] == ["one", "two"]
            async with client.stream("t.Echo", "Talk", StringValue) as stream:
                for part in ("x", "y" * 100_000):
                    await stream.send(StringValue(value=part))
                    answer = await stream.receive()
                    assert answer is not None and answer.value == part
                await stream.end()
                assert await stream.receive() is None

    run(test)


# The shim's messages, as far as they are used here, have the same fields as well-known types: an id is a StringValue,
# an id and a bundle are an Any, a ConnectResponse begins as a UInt32Value.


def make_bundle(directory: Path) -> None:
    """One whose container sleeps."""
    (directory / "rootfs/bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", directory / "rootfs/bin/sleep")
    subprocess.run(["runc", "spec"], cwd=directory, check=True)
    config = json.loads((directory / "config.json").read_text())
    config["process"] |= {"args": ["/bin/sleep", "1000"], "terminal": False, "rlimits": []}
    config["root"]["readonly"] = True
    (directory / "config.json").write_text(json.dumps(config))
    os.mkfifo(directory / "log")


@pytest.mark.root
def test_containerds_shim_serves_us_and_sends_us_its_events(tmp_path: Path) -> None:
    """Both ends of the Go implementation: its server (the Task service) and its client (which forwards events)."""
    needs_root()
    needs_program(SHIM, "runc", "busybox")
    make_bundle(tmp_path)
    topics: list[bytes] = []

    async def forward(_: Call, envelope: Empty) -> Empty:
        topics.append(envelope.SerializeToString())  # unknown fields are kept
        return Empty()

    async def test() -> None:
        events = Server({"containerd.services.events.ttrpc.v1.Events": {"Forward": unary(Empty, forward)}})
        await events.listen(tmp_path / "events")
        log = os.open(tmp_path / "log", os.O_RDWR | os.O_NONBLOCK)
        process = await asyncio.create_subprocess_exec(
            SHIM, "-namespace", "drupe-test", "-address", tmp_path / "c.sock", "-publish-binary", "/bin/true",
            "-id", "shimmed", "start", cwd=tmp_path, stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "TTRPC_ADDRESS": str(tmp_path / "events")},
        )  # fmt: skip
        address, _ = await process.communicate()
        shim = 0
        try:
            async with await Client.connect(address.decode().removeprefix("unix://")) as client:
                shim = await drive(client)
            await until(lambda: any(b"/tasks/delete" in topic for topic in topics))
        finally:
            await asyncio.to_thread(end, shim)
            os.close(log)
            await events.close()
        assert [
            topic for topic in (b"/tasks/create", b"/tasks/start", b"/tasks/exit") if topic not in b"".join(topics)
        ] == []

    async def drive(client: Client) -> int:
        async def task(method: str, message: Any, answer: Any = Empty) -> Any:
            metadata = {"containerd-namespace-ttrpc": "drupe-test"}
            return await client.call(
                "containerd.task.v2.Task", method, message, answer, timeout_s=20, metadata=metadata
            )

        with pytest.raises(NotFound):
            await task("State", StringValue(value="nobody"))
        with pytest.raises(Unsupported):
            await task("Dance", Empty())
        bundle = str(tmp_path).encode()
        assert (await task("Create", TwoStrings(type_url="shimmed", value=bundle), UInt32Value)).value > 0
        shim = (await task("Connect", StringValue(value="shimmed"), UInt32Value)).value
        await task("Start", StringValue(value="shimmed"))
        waiting = asyncio.create_task(task("Wait", StringValue(value="shimmed"), UInt32Value))
        await task("State", StringValue(value="shimmed"))  # answered while the other waits
        kill = StringValue.FromString(StringValue(value="shimmed").SerializeToString() + b"\x18\x09")  # signal = 9
        await task("Kill", kill)
        assert (await waiting).value == 128 + signal.SIGKILL
        await task("Delete", StringValue(value="shimmed"))
        await task("Shutdown", StringValue(value="shimmed"))
        return int(shim)

    run(test)


def end(pid: int) -> None:
    """It was told to shut down; make sure."""
    if pid:
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="the end of the shim")

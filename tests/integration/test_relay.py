"""The process between containerd and the daemon: what it costs, and its own death."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from drupe.errors import NotFound, Unavailable
from drupe.rpc.containerd import task_v2_pb2 as task
from drupe.rpc.ttrpc import Client
from drupe.spec.containerd import ShimStart
from framework.aio import until
from framework.bundles import config, make_bundle
from framework.daemon import CALL_TIMEOUT_S, Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root
CLIENTS = 50
OWN_MEMORY_KIB = 1024


def listens(path: str) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == 0


def address(daemon: Daemon) -> str:
    """Where the daemon has containerd's tasks served."""
    asked = ShimStart(name="containerd-shim-drupe-v2", namespace="n", id="t", grpc="/g")
    with daemon.client() as client:
        found: str = client.call("containerd.start", asked, timeout_s=CALL_TIMEOUT_S).address
    return found.removeprefix("unix://")


def relay_pid(daemon: Daemon) -> int:
    """Of the one that serves this daemon."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        command = comm.with_name("cmdline").read_bytes().split(b"\0") if comm.read_text() == "drupe-relay\n" else []
        if str(daemon.run / "containerd").encode() in command:
            return int(comm.parent.name)
    return 0


async def ask(client: Client) -> None:
    """A call that arrives, and is answered."""
    with pytest.raises(NotFound):
        await client.call("containerd.task.v2.Task", "State", task.StateRequest(id="none"), Empty)


def own_memory_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def test_it_is_small_and_ends_with_the_last_daemon(fresh_daemon: Daemon) -> None:
    path = address(fresh_daemon)

    async def many() -> int:
        clients = [await Client.connect(path) for _ in range(CLIENTS)]
        for client in clients:
            await ask(client)
        used = own_memory_kib(relay_pid(fresh_daemon))
        for client in clients:
            await client.close()
        return used

    assert asyncio.run(many()) < OWN_MEMORY_KIB


def test_another_follows_one_that_was_killed(fresh_daemon: Daemon) -> None:
    path = address(fresh_daemon)

    async def test() -> None:
        before = relay_pid(fresh_daemon)
        async with await Client.connect(path) as client:
            await ask(client)
            os.kill(before, signal.SIGKILL)
            with pytest.raises(Unavailable):
                await client.call("containerd.task.v2.Task", "State", task.StateRequest(id="none"), Empty)
        await until(lambda: relay_pid(fresh_daemon) not in (0, before))
        await until(lambda: listens(path))
        async with await Client.connect(path) as client:
            await ask(client)

    asyncio.run(test())
    assert "relay for containerd died" in fresh_daemon.command("system", "info").stdout


def test_a_daemon_that_died_is_started_again(fresh_daemon: Daemon) -> None:
    """By nobody's command, while containerd is connected; what it had asked is answered by the next one."""
    fresh_daemon.kill()
    fresh_daemon.start(kept=False)
    path = address(fresh_daemon)

    async def test() -> None:
        async with await Client.connect(path) as client:
            await ask(client)
            fresh_daemon.kill()
            await ask(client)

    asyncio.run(test())
    fresh_daemon.command("system", "shutdown", check=True)
    wait_until(lambda: not listens(str(fresh_daemon.run / "drupe.sock")), what="the other has ended")
    fresh_daemon.start()
    assert not [*(fresh_daemon.run / "containerd").glob("wake*")]  # it was shut down: nobody wants one


def test_a_daemon_that_got_a_signal_is_started_by_the_next_call(fresh_daemon: Daemon, tmp_path: Path) -> None:
    """Not before: whoever stops it, and asks nothing, finds it stopped. As long as there are tasks somebody may ask."""
    bundle = make_bundle(tmp_path / "bundle", config("sleep", "1000", cgroup="task"))
    fresh_daemon.kill()
    fresh_daemon.start(kept=False)
    path, socket = address(fresh_daemon), str(fresh_daemon.run / "drupe.sock")

    async def test() -> None:
        async with await Client.connect(path) as client:
            asked = task.CreateTaskRequest(id="t", bundle=str(bundle))
            await client.call("containerd.task.v2.Task", "Create", asked, task.CreateTaskResponse)
            assert fresh_daemon.process is not None
            fresh_daemon.process.terminate()
            fresh_daemon.process.wait()
            assert not listens(socket) and (fresh_daemon.run / "containerd/wake-when-called").exists()
            await ask(client)
            assert listens(socket)
            await client.call("containerd.task.v2.Task", "Kill", task.KillRequest(id="t", signal=9), Empty)
            await client.call("containerd.task.v2.Task", "Wait", task.WaitRequest(id="t"), task.WaitResponse)
            await client.call("containerd.task.v2.Task", "Delete", task.DeleteRequest(id="t"), task.DeleteResponse)

    asyncio.run(test())
    fresh_daemon.command("system", "shutdown", check=True)
    wait_until(lambda: not listens(socket), what="the other has ended")
    fresh_daemon.start()

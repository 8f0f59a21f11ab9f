"""kill -9 of the real daemon at journal writes of a task's life, as containerd lives it with one: no call fails, none
is carried out twice, each answer is right, each event is told. The client never sees its connection end. `make test`
tries a third of the writes, `make test-full` all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from drupe.rpc.containerd import task_pb2 as words
from drupe.rpc.containerd import task_v2_pb2 as task
from drupe.rpc.containerd.forward_pb2 import ForwardRequest
from drupe.rpc.containerd.task_events_pb2 import TaskExit
from drupe.rpc.ttrpc import Call, Client, Server, unary
from drupe.spec.containerd import ShimStart
from framework.aio import until
from framework.bundles import config, make_bundle
from framework.daemon import CALL_TIMEOUT_S
from framework.faulty import FaultyDaemon
from framework.probes import each
from framework.residue import residue

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(400)]

WORKLOAD = "trap 'exit 7' TERM; echo begun >>marks; while :; do sleep 0.02; done"
TOPICS = ["create", "start", "exec-added", "exec-started", "exit e", "paused", "resumed", "exit t", "delete"]


class Peer:
    """What containerd is to us: a client of the Task service, and a server that takes events."""

    def __init__(self, faulty: FaultyDaemon, bundle: Path) -> None:
        self.faulty = faulty
        self.bundle = bundle
        self.topics: list[str] = []
        self.client: Client

    async def forward(self, _: Call, told: ForwardRequest) -> Empty:
        topic = told.envelope.topic.removeprefix("/tasks/")
        if topic == "exit":
            topic += f" {TaskExit.FromString(told.envelope.event.value).id}"
        if topic not in self.topics:  # else the daemon died before it could note that we had this
            self.topics.append(topic)
        return Empty()

    async def call(self, method: str, request: Message) -> Message:
        return await self.client.call("containerd.task.v2.Task", method, request, _ANSWERS.get(method, Empty))

    async def life(self) -> None:
        """From creation to deletion, with an exec."""
        made = await self.call("Create", task.CreateTaskRequest(id="t", bundle=str(self.bundle)))
        end = asyncio.create_task(self.call("Wait", task.WaitRequest(id="t")))
        assert (await self.call("Start", task.StartRequest(id="t"))).pid == made.pid
        marks = self.bundle / "rootfs/marks"
        await until(lambda: marks.exists() and marks.read_text() == "begun\n")
        await self.exec()
        await self.call("Pause", task.PauseRequest(id="t"))
        await self.call("Resume", task.ResumeRequest(id="t"))
        state = await self.call("State", task.StateRequest(id="t"))
        assert (state.status, state.pid) == (words.RUNNING, made.pid)
        await self.call("Kill", task.KillRequest(id="t", signal=15))
        assert (await end).exit_status == 7
        gone = await self.call("Delete", task.DeleteRequest(id="t"))
        assert (gone.exit_status, gone.pid) == (7, made.pid)
        assert marks.read_text() == "begun\nexec\n"

    async def exec(self) -> None:
        process = {"args": ["sh", "-c", "echo exec >>marks; exit 5"], "cwd": "/", "env": ["PATH=/bin"]}
        spec = AnyMessage(value=json.dumps(process).encode())
        await self.call("Exec", task.ExecProcessRequest(id="t", exec_id="e", spec=spec))
        end = asyncio.create_task(self.call("Wait", task.WaitRequest(id="t", exec_id="e")))
        pid = (await self.call("Start", task.StartRequest(id="t", exec_id="e"))).pid
        assert (await end).exit_status == 5
        gone = await self.call("Delete", task.DeleteRequest(id="t", exec_id="e"))
        assert gone.exit_status == 5 and gone.pid in (pid, 0)

    async def live(self) -> None:
        """A life, and what it leaves: nothing."""
        self.topics.clear()
        (self.bundle / "rootfs/marks").unlink(missing_ok=True)
        async with asyncio.timeout(30):
            await self.life()
            await until(lambda: len(self.topics) == len(TOPICS))
            assert self.topics == TOPICS
            await until(lambda: not residue(self.faulty))


_ANSWERS: dict[str, type[Message]] = {
    "Create": task.CreateTaskResponse,
    "Start": task.StartResponse,
    "Wait": task.WaitResponse,
    "State": task.StateResponse,
    "Delete": task.DeleteResponse,
}


@contextlib.asynccontextmanager
async def connected(faulty: FaultyDaemon, directory: Path) -> AsyncIterator[Peer]:
    """A peer with its connection to the daemon, or to what stands for it."""
    bundle = make_bundle(directory / "b", config("sh", "-c", WORKLOAD, cgroup=f"deaths-{os.getpid()}"))
    peer = Peer(faulty, bundle)
    events = Server({"containerd.services.events.ttrpc.v1.Events": {"Forward": unary(ForwardRequest, peer.forward)}})
    await events.listen(directory / "events.sock")
    asked = ShimStart(
        name="containerd-shim-drupe-v2", namespace="n", id="t", grpc="/g", ttrpc=str(directory / "events.sock")
    )
    with faulty.client() as control:
        address = control.call("containerd.start", asked, timeout_s=CALL_TIMEOUT_S).address
    async with await Client.connect(address.removeprefix("unix://")) as peer.client:
        yield peer
    await events.close()


async def revive(faulty: FaultyDaemon) -> None:
    """Whenever the daemon has died, start another."""
    while True:
        assert faulty.process is not None
        await until(lambda: faulty.process.poll() is not None, timeout_s=60)
        try:
            await asyncio.to_thread(faulty.start)
        except Exception:  # it died again before it could say that it was there: a call was waiting for it
            if faulty.process.poll() is None:
                raise


async def die_at_each(faulty: FaultyDaemon, peer: Peer) -> int:
    """How many deaths there were."""
    faulty.arm(0, "never")
    await peer.live()
    writes = faulty.listed()
    faulty.kill()
    reviving = asyncio.create_task(revive(faulty))
    missed = []
    chosen = each(3, list(apart(writes)))
    for write in chosen:
        faulty.arm(write, "before")
        try:
            await peer.live()
        except Exception as error:
            error.add_note(f"killed before write {write} of {len(writes)}; {faulty.log.read_text()[-2500:]}")
            raise
        if faulty.arm_file.exists():  # a busy host: what was written apart before was written together
            faulty.arm_file.unlink()
            missed.append(write)
    reviving.cancel()
    assert len(missed) <= 3, missed
    return len(chosen) - len(missed)


def apart(writes: list[str]) -> Iterator[int]:
    """The writes between which something is done: those of a transaction are one, and of the daemon's own events
    nothing depends."""
    within = False
    for number, text in enumerate(writes, 1):
        if not within and not text.startswith("INSERT INTO events"):
            yield number
        within = (within or text.startswith("BEGIN")) and not text.startswith("COMMIT")


def test_no_call_fails_though_the_daemon_dies(faulty: FaultyDaemon, tmp_path: Path) -> None:
    async def test() -> int:
        async with connected(faulty, tmp_path) as peer:
            return await die_at_each(faulty, peer)

    began = time.monotonic()
    print(f"killed at {asyncio.run(test())} writes, {time.monotonic() - began:.1f} s")

"""The tasks of containerds: containers of ours, found by containerd's names, and told of to their owner.

A task's end is told once, before its deletion and after its start, whenever the daemon may have been restarted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from google.protobuf.message import Message

from drupe.errors import DrupeError, NotFound
from drupe.keeper.client import Keeper
from drupe.rpc.containerd import task_events_pb2 as events
from drupe.runtime.container import Container
from drupe.runtime.core import Core
from drupe.runtime.pod import Pod
from drupe.services.containerd import records
from drupe.services.containerd.events import Outbox, stamp
from drupe.services.containerd.peers import OWNER, Peer, Peers, configured
from drupe.services.containerd.records import ExecRecord, TaskRecord
from drupe.services.containerd.stdio import close_streams, stream_id
from drupe.services.containerd.streams import Streams
from drupe.spec.status import ExitStatus
from drupe.state.machine import State


class Task:
    """One task. fds: what its start is given, until then."""

    def __init__(self, record: TaskRecord, container: Container) -> None:
        self.record = record
        self.container = container
        self.fds: dict[str, int] = {}
        self.begun: dict[str, asyncio.Event] = {}  # by exec: set once it has been started
        self.starting: set[str] = set()  # execs that are just being started
        self.stdin_closed: set[str] = set()  # execs for which no more input comes
        self.stdin_holders: dict[str, int] = {}  # by exec: keeps its stdin from ending before there is a writer

    @property
    def pod(self) -> Pod:
        return self.container.pod

    @property
    def live(self) -> bool:
        return self.container.is_live

    def exec(self, exec_id: str) -> ExecRecord:
        """NotFound."""
        try:
            return self.record.execs[exec_id]
        except KeyError:
            raise NotFound(f"task {self.record.id} has no exec {exec_id!r}") from None

    async def exec_begun(self, exec_id: str) -> None:
        """Wait until an exec has been started, or taken away."""
        await self.begun.setdefault(exec_id, asyncio.Event()).wait()

    def note_begun(self, exec_id: str) -> None:
        """Have those go on who wait for it."""
        if (waiting := self.begun.pop(exec_id, None)) is not None:
            waiting.set()

    def let_go(self) -> None:
        """Close what is held for it."""
        close_streams(self.fds)
        close_streams(self.stdin_holders)
        self.fds, self.stdin_holders = {}, {}


class Tasks:
    """All tasks of all containerds of this node."""

    def __init__(self, core: Core, keeper: Keeper) -> None:
        self.core = core
        self.node = core.node
        self.peers = Peers(core.node.journal)
        self.graves = records.Graves(core.node.journal)
        self.streams = Streams()
        self.keeper = keeper
        self._outboxes: dict[str, Outbox] = {}
        self._tasks: dict[tuple[str, str, str], Task] = {}
        self._work: set[asyncio.Future[Message]] = set()
        self._recover()

    def _recover(self) -> None:
        containers = {c.id: c for pod in self.core.pods.values() for c in pod.containers.values()}
        for record in records.load(self.node.journal):
            container = containers.get(record.container)
            if container is None:  # it was half made, or half removed
                self._recover_removed(record)
            else:
                self.add(Task(record, container))

    def _recover_removed(self, record: TaskRecord) -> None:
        grave = self.graves.find(*record.key, "")
        with self.node.journal.transaction():
            record.remove(self.node.journal)
            if grave is not None:
                self._put(record, "delete", deletion(record, grave.exit))

    async def remove_strays(self) -> None:
        """Remove what was made for tasks that no record names: the daemon ended before there was one. Whoever wanted
        them asks again."""
        for pod in list(self.core.pods.values()):
            if pod.spec.owner.startswith(OWNER):
                try:
                    await self._remove_strays(pod)
                except DrupeError as error:
                    self.node.note(f"{pod.what}: what containerd has not asked for is not removed: {error}")

    async def _remove_strays(self, pod: Pod) -> None:
        known = {task.container.id for task in self.in_pod(pod)}
        strays = [container for container in pod.containers.values() if container.id not in known]
        started = pod.state is not State.READY  # a sandbox is made and started in one call, which has failed then
        if len(strays) == len(pod.containers) and not (pod.held and started):
            await self.core.delete_pod(pod, force=True)
            return
        for container in strays:
            await self.core.delete_container(container, force=True)

    @property
    def needed(self) -> bool:
        """Whether some containerd has something here."""
        return any(pod.spec.owner.startswith(OWNER) for pod in self.core.pods.values())

    async def settle(self) -> None:
        """Wait until what is being changed is changed."""
        await asyncio.gather(*self._work, return_exceptions=True)

    def working(self, work: asyncio.Future[Message]) -> None:
        """Something is being changed; `close` waits for it."""
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # its caller may have gone

    async def close(self) -> None:
        """Tasks go on."""
        await self.settle()
        for task in self._tasks.values():
            task.let_go()
        for outbox in self._outboxes.values():
            await outbox.close()

    def all_peers(self) -> list[Peer]:
        """Those that are known from their shims, and the one that the node's configuration names."""
        return [*self.peers, configured(self.node.config.containerd)]

    # -- finding ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Task]:
        return iter(list(self._tasks.values()))

    def find(self, peer: str, namespace: str, id_: str) -> Task | None:
        return self._tasks.get((peer, namespace, id_))

    def pod(self, owner: str, namespace: str, name: str) -> Pod | None:
        """The pod that a containerd knows by that name."""
        wanted = (owner, namespace, name)
        return next((p for p in self.core.pods.values() if (p.spec.owner, p.spec.namespace, p.name) == wanted), None)

    def in_pod(self, pod: Pod) -> list[Task]:
        return [task for task in self if task.pod is pod]

    # -- their life ---------------------------------------------------------------------------------------------------

    def add(self, task: Task) -> None:
        """Know a task, and watch it to its end."""
        self._tasks[task.record.key] = task
        if not task.record.exit_told:
            self.node.spawn(self._watch(task), f"end of task {task.record.id}")
        for exec_id, exec_ in task.record.execs.items():
            if exec_.ours and exec_.exit is None:
                self.watch_exec(task, exec_id)

    def remove(self, task: Task, told: Message | None = None) -> None:
        """Forget one whose container is gone. told: the event that says so."""
        task.let_go()
        for exec_id in list(task.begun):  # it will not come any more
            task.note_begun(exec_id)
        for streams in (task.record.streams, *(exec_.streams for exec_ in task.record.execs.values())):
            self.forget_streams(task.record.peer, task.record.namespace, streams)
        self._tasks.pop(task.record.key, None)
        with self.node.journal.transaction():
            task.record.remove(self.node.journal)
            if told is not None:
                self.tell(task, "delete", told)

    def forget_streams(self, peer: str, namespace: str, streams: records.Streams) -> None:
        """Those that containerd called for, and nobody needs any more."""
        for uri in (streams.stdin, streams.stdout, streams.stderr):
            if id_ := stream_id(uri):
                self.streams.forget((peer, namespace, id_))

    async def _watch(self, task: Task) -> None:
        exit_ = await task.container.wait()
        fds, task.fds = task.fds, {}
        close_streams(fds)  # killed before its start: whoever reads waits for their end before it is deleted
        if task.container.state is not State.DELETED:
            self.tell_exit(task, exit_)

    def tell_exit(self, task: Task, exit_: ExitStatus) -> None:
        """Once."""
        record = task.record
        if record.exit_told or not record.pid:
            return
        record.exit_told = True
        self.note(task, "exit", events.TaskExit(
            container_id=record.id, id=record.id, pid=record.pid, exit_status=exit_.code, exited_at=stamp(exit_.at)
        ))  # fmt: skip

    def watch_exec(self, task: Task, exec_id: str) -> None:
        """Tell its end when it comes."""
        exec_ = task.record.execs[exec_id]
        try:
            task.container.execs.when_ended(exec_.ours, lambda exit_: self._exec_ended(task, exec_id, exec_, exit_))
        except NotFound:  # it was lost together with its keeper
            lost = ExitStatus(code=255, at=task.container.status.finished_at, reason="Lost")
            self._exec_ended(task, exec_id, exec_, lost)

    def _exec_ended(self, task: Task, exec_id: str, exec_: ExecRecord, exit_: ExitStatus) -> None:
        exec_.exit = exit_
        close_streams({exec_id: fd} if (fd := task.stdin_holders.pop(exec_id, -1)) >= 0 else {})
        tell = self.note if self.find(*task.record.key) is task else self.tell  # it may have been deleted by force
        tell(task, "exit", events.TaskExit(
            container_id=task.record.id, id=exec_id, pid=exec_.pid, exit_status=exit_.code, exited_at=stamp(exit_.at)
        ))  # fmt: skip

    # -- events -------------------------------------------------------------------------------------------------------

    def note(self, task: Task, topic: str, event: Message) -> None:
        """Keep what has changed about a task, and tell it: both or neither, whenever the daemon dies."""
        with self.node.journal.transaction():
            task.record.save(self.node.journal)
            self.tell(task, topic, event)

    def tell(self, task: Task, topic: str, event: Message) -> None:
        """Put an event of a task among those for its containerd."""
        self._put(task.record, topic, event)

    def _put(self, record: TaskRecord, topic: str, event: Message) -> None:
        peer = next((peer for peer in self.peers if peer.key == record.peer), None)
        if peer is not None:
            self.outbox(peer).put(record.namespace, f"/tasks/{topic}", event)

    def outbox(self, peer: Peer) -> Outbox:
        if peer.key not in self._outboxes:
            self._outboxes[peer.key] = Outbox(peer, self.node, self.keeper)
        return self._outboxes[peer.key]

    async def tell_memory(self) -> None:
        """Pass on that the kernel has killed for memory, as long as there is a daemon."""
        with self.node.events.listen() as queue:
            while True:
                event = await queue.get()
                if (event.type, event.action) == ("container", "oom"):
                    for task in self:
                        if task.container.id == event.id:
                            self.tell(task, "oom", events.TaskOOM(container_id=task.record.id))


def deletion(record: TaskRecord, exit_: ExitStatus | None) -> Message:
    """The event of a task's deletion."""
    exit_ = exit_ or ExitStatus(code=0)
    return events.TaskDelete(
        container_id=record.id, pid=record.pid, exit_status=exit_.code, exited_at=stamp(exit_.at), id=""
    )

"""The sandboxes of containerd: each is a pod of the core with the sandbox's id. This is what the Sandbox Controller
does, in our words; `controller` has containerd's.

`create` only remembers what is asked for, once it is known to be possible: containerd may give up before `start`
without a word, and tells nobody when `start` has failed. So a pod is made by `start`, whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from drupe.errors import AlreadyExists, InvalidState, NotFound
from drupe.rpc.cri import api_pb2 as cri
from drupe.runtime.core import Core
from drupe.runtime.pod import Pod
from drupe.services.containerd.podspecs import fitted, limits
from drupe.spec.base import check_id
from drupe.spec.pod import PodSpec
from drupe.spec.status import Event, Stats
from drupe.state.journal import Journal
from drupe.state.machine import State

_ASKED = "containerd-sandbox"  # the record of what was asked for
_MOST_WAITING = 1024
_LIVE = (State.RUNNING, State.PAUSED)
_OVER = ("stop", "fail", "destroy")


def config_made_of(journal: Journal, id_: str) -> cri.PodSandboxConfig:
    """What the CRI asked for; an empty one where nobody did."""
    record: dict[str, Any] = journal.get_record(_ASKED, id_) or {}
    return cri.PodSandboxConfig.FromString(record.get("config", b""))


@dataclass(frozen=True, slots=True)
class Asked:
    """What containerd wants: the pod, the CRI's words for it (serialized), and the handler's name."""

    spec: PodSpec
    config: bytes
    handler: str


class Sandboxes:
    """All of them. Ids are those of pods; others' pods are not found here."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._waiting: OrderedDict[str, Asked] = OrderedDict()
        self._ends: dict[str, asyncio.Event] = {}
        self._waiters: Counter[str] = Counter()
        for id_ in core.node.journal.records(_ASKED).keys() - core.pods.keys():  # the daemon died before there was one
            core.node.journal.delete_record(_ASKED, id_)

    # -- life ---------------------------------------------------------------------------------------------------

    async def create(self, asked: Asked) -> None:
        """Remember it until its start. InvalidArgument (its id); AlreadyExists; and what a pod may be refused for
        (kind, policy, feature)."""
        id_ = check_id(str(asked.spec.id), "sandbox")
        if id_ in self._core.pods:
            raise AlreadyExists(f"sandbox {id_} exists")
        self._waiting[id_] = replace(asked, spec=await fitted(self._core, asked.spec))
        while len(self._waiting) > _MOST_WAITING:  # whose containerd gave up
            self._waiting.popitem(last=False)

    async def start(self, id_: str) -> Pod:
        """Make it and have it ready for containers; a second time answers the same. NotFound, and what making a pod
        raises: nothing is left of it then."""
        if id_ in self._core.pods:
            pod = self.pod(id_)
            if pod.state not in _LIVE:
                raise InvalidState(f"sandbox {id_} is {pod.state}: it is not started a second time")
            return pod
        asked = self._waiting.pop(id_, None)
        if asked is None:
            raise NotFound(f"no sandbox {id_}", hint="it has been removed, or was never created here")
        self._core.node.journal.put_record(_ASKED, id_, {"config": asked.config, "handler": asked.handler})
        try:
            return await self._make(asked)
        except BaseException:
            self._core.node.journal.delete_record(_ASKED, id_)
            raise

    async def _make(self, asked: Asked) -> Pod:
        pod = await self._core.create_pod(asked.spec, held=True)
        try:
            async with pod.lock:
                await pod.start()
        except BaseException:
            await self._core.delete_pod(pod, force=True)
            raise
        return pod

    async def stop(self, id_: str, *, timeout_s: float) -> None:
        """End it with what is still in it. NotFound; idempotent."""
        pod = self.pod(id_)
        async with pod.lock:
            await pod.stop(timeout_s=timeout_s, force=not timeout_s)

    async def shutdown(self, id_: str) -> None:
        """Remove it, whatever its state. Idempotent."""
        self._waiting.pop(id_, None)
        with contextlib.suppress(NotFound):
            await self._core.delete_pod(self.pod(id_), force=True)
        self._core.node.journal.delete_record(_ASKED, id_)

    async def update(self, id_: str, linux: cri.LinuxPodSandboxConfig) -> None:
        """New limits of the pod as a whole, where its cgroup is not below one that the kubelet limits."""
        pod = self.pod(id_)
        if pod.spec.cgroup_parent is None:
            async with pod.lock:
                await pod.update(limits(linux))

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def cgroup_version(self) -> int:
        """Of the counters."""
        return self._core.node.cgroups.version

    def pod(self, id_: str) -> Pod:
        """NotFound, also for a pod that is not containerd's."""
        pod = self._core.pods.get(id_)
        if pod is None or not pod.held:
            raise NotFound(f"no sandbox {id_}")
        return pod

    def asked(self, id_: str) -> tuple[cri.PodSandboxConfig, str]:
        """What it was made of, and the name of its handler."""
        record: dict[str, Any] = self._core.node.journal.get_record(_ASKED, id_) or {}
        return config_made_of(self._core.node.journal, id_), str(record.get("handler", ""))

    async def stats(self, id_: str) -> Stats:
        """Counters of the pod as a whole."""
        return await self.pod(id_).stats()

    async def wait(self, id_: str) -> Pod:
        """Until it has ended. NotFound when it is not here; one that is removed meanwhile has ended."""
        pod = self.pod(id_)
        self._waiters[id_] += 1
        try:
            while pod.state in _LIVE:
                end = self._ends.setdefault(id_, asyncio.Event())
                await end.wait()
        finally:
            self._waiters[id_] -= 1
            if not self._waiters[id_]:
                del self._waiters[id_]
        return pod

    def is_waited(self, id_: str) -> bool:
        """Whether somebody waits for its end just now."""
        return self._waiters[id_] > 0

    def all(self) -> list[Pod]:
        """Each that is here, whatever its state."""
        return [pod for pod in self._core.pods.values() if pod.held]

    # -- ends ---------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Wake those who wait, for ever."""
        with self._core.node.events.listen() as events:
            while True:
                self._hear(await events.get())

    def _hear(self, event: Event) -> None:
        if event.type == "pod" and event.action in _OVER and (end := self._ends.pop(event.id, None)):
            end.set()

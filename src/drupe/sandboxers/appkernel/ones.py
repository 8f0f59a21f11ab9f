"""Limits of one container among several: the host holds memory, of what runs in its cgroup; the kernel time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from drupe.resources.cgroups import Cgroups
from drupe.resources.limits import apply_verified
from drupe.sandboxers.appkernel.bounds import check_of_one, of_one_on_host, time_of
from drupe.sandboxers.appkernel.pods import KernelPod
from drupe.sandboxers.appkernel.records import TaskRecord
from drupe.spec.resources import Resources


class OnesLimits:
    """What is done for them, besides writing them to the container's cgroup when that is made."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups

    @contextlib.contextmanager
    def cgroup(self, record: TaskRecord) -> Iterator[int]:
        """The file by which the kernel moves a container's stubs to where its memory is limited."""
        fd = os.open(self._cgroups.procs_file(record.cgroup, "memory"), os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    async def place(self, pod: KernelPod, record: TaskRecord) -> None:
        """Move what of it runs there."""
        with self.cgroup(record) as fd:
            await pod.require().call("place", container=record.id, fds={"cgroup": fd})

    async def tell(self, pod: KernelPod, record: TaskRecord, *, anew: bool = False) -> None:
        """Have the kernel show its programs their memory, and hold them to their time. anew: there may be no bound."""
        fields: dict[str, Any] = {}
        if record.placed:
            fields["memory_bytes"] = self._cgroups.stats(record.cgroup).memory_limit_bytes
        if record.time or anew:
            fields["cpu_us"] = record.time
        if fields:
            await pod.require().call("limits", container=record.id, **fields)

    async def change(self, pod: KernelPod, record: TaskRecord, resources: Resources) -> None:
        """Its stubs go where its memory is limited, unless they are there. Unsupported: see `check_of_one`."""
        check_of_one(resources)
        apply_verified(self._cgroups, record.cgroup, of_one_on_host(resources))
        is_new = resources.memory_bytes is not None and not record.placed
        record.placed, record.time = record.placed or is_new, time_of(resources, record.time)
        record.save()
        if record.started and record.exit is None:
            if is_new:
                await self.place(pod, record)
            await self.tell(pod, record, anew=True)

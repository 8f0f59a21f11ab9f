"""Machines that are written down with all that runs in them, and what goes on from there as another machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from drupe.errors import InvalidState, Unavailable, Unsupported
from drupe.hypervisors.contract import Disk, MachineConfig, Nic
from drupe.keeper.client import Keeper
from drupe.resources.network.endpoints.contract import Joined
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.kept.records import Record
from drupe.sandboxers.vm import network
from drupe.sandboxers.vm.options import ROOTFS
from drupe.sandboxers.vm.phases import Phases
from drupe.sandboxers.vm.plugging import told
from drupe.sandboxers.vm.pods import VmPod
from drupe.sandboxers.vm.records import TaskRecord
from drupe.sandboxers.vm.roots import RootDisk

if TYPE_CHECKING:
    from drupe.sandboxers.vm.starting import Starter

_COPIES_WITHIN_S = 600.0
_ABOUT = "machine.json"


class SavedTask(Record, kw_only=True):
    """A container of a saved machine. guest: its id there. pid: as `TaskRecord.pid`. offsets: bytes of its output that
    were taken by then."""

    guest: str
    pid: int = 0
    offsets: dict[str, int] = {}
    disks: list[RootDisk] = []


class SavedMachine(Record, kw_only=True):
    """key: of what can go on from it (Templates.key_of). places: where its devices sit. nics: id and MAC of each.
    tasks: by the ids that they had. disks: all that it had; those that are no image's lie beside it. spare_disks: see
    MachineConfig."""

    key: str
    places: dict[str, str]
    nics: list[tuple[str, str]]
    tasks: dict[str, SavedTask]
    disks: list[RootDisk] = []
    spare_disks: int = 0

    @classmethod
    def of(cls, directory: Path) -> SavedMachine:
        """InvalidState for what is none."""
        found = cls.read(directory / _ABOUT)
        if found is None:
            raise InvalidState(f"{directory} has no saved machine")
        return found


def require_saveable(pod: VmPod) -> None:
    """Unsupported for a machine with a shared directory, InvalidState for one that was resized."""
    if pod.record.shares:
        raise Unsupported(
            "a machine with a shared directory cannot be saved",
            kind="vm",
            feature="snapshot",
            hint=f"make the pod with the annotation {ROOTFS}=block",
        )
    record = pod.record
    if record.hypervisor not in ("", "qemu"):
        raise Unsupported(
            "only machines of QEMU are saved here", kind="vm", feature="snapshot", cause=record.hypervisor
        )
    if (record.memory_now, record.processors_now) != (record.memory_bytes, record.processors):
        raise InvalidState(
            "a machine that has another size than it started with cannot be saved",
            hint="give the pod its first limits again (drupe pod update)",
        )


class Saver:
    """Saves machines."""

    def __init__(self, keeper: Keeper, starter: Starter) -> None:
        self._keeper = keeper
        self._starter = starter

    async def save(
        self,
        pod: VmPod,
        directory: Path,
        tasks: Sequence[TaskRecord],
        offsets: Callable[[str], dict[str, int]],
        meanwhile: Callable[[], Awaitable[None]],
    ) -> str:
        """Write it down while everything in it stands still; it goes on afterwards. Returns what can read it."""
        require_saveable(pod)
        machine, program = pod.require(), self._starter.program(pod.record)
        if (await machine.status()).processors != pod.record.processors:  # see `resizing`
            raise InvalidState(
                "an emulated machine that once had more processors keeps them, and cannot be saved",
                hint="stop and start the pod",
            )
        await pod.agent.guest("Freeze", pb.FreezeRequest(frozen=True))
        try:
            pod.saving = True
            await machine.pause()
            try:
                await machine.save(directory)
                about = SavedMachine(
                    key=self._starter.templates.key_of(pod.record, program),
                    places=dict(await machine.places()),
                    nics=pod.record.nics,
                    tasks={
                        one.id: SavedTask(guest=one.guest, pid=one.pid, offsets=offsets(one.id), disks=one.disks)
                        for one in tasks
                    },
                    disks=pod.record.disks,
                    spare_disks=pod.record.spare_disks,
                )
                for disk in pod.record.disks:
                    if not disk.image:  # an image lasts as long as a snapshot needs it
                        await self._copy(Path(disk.path), directory)
                about.write(directory / _ABOUT)
                await meanwhile()
            finally:
                await machine.resume()
        finally:
            pod.saving = False
            with contextlib.suppress(Unavailable):
                await pod.agent.guest("Freeze", pb.FreezeRequest(frozen=False))
        return f"{Path(program).name} {about.key[:12]}"

    async def _copy(self, source: Path, target: Path) -> None:
        argv = ["cp", "--reflink=auto", "--sparse=always", str(source), str(target)]
        await self._keeper.run(argv, timeout_s=_COPIES_WITHIN_S, check=True)

    async def restore(self, pod: VmPod, directory: Path) -> None:
        """Have what was saved go on as this machine, its containers standing still until `thaw`."""
        saved, record, phases = SavedMachine.of(directory), pod.record, Phases()
        record.spare_disks = saved.spare_disks
        config = record.machine()
        if saved.key != self._starter.templates.key_of(record, self._starter.program(record)):
            raise Unsupported(
                "the snapshot is of another kind of machine", kind="vm", feature="snapshot",
                cause="QEMU, the guest image or the size of the pod is not what it was",
            )  # fmt: skip
        record.disks = await self._disks(saved, directory, record.home)
        with phases("network"):
            joined = await network.join(self._keeper, record)
        disks = [one.disk() for one in record.disks]
        with phases("restore"):
            await self._starter.boot(pod, _config(config, directory, saved, disks, joined), phases)
        with phases("renew"):
            await self._starter.or_end(pod, renew(pod, _renewal(pod, saved, joined)))
        record.nics, record.told = [(nic.id, nic.mac) for nic in _nics(saved, joined)], told(joined)
        record.started, record.failed, record.phases_ms = True, "", phases.told
        record.save()

    async def _disks(self, saved: SavedMachine, directory: Path, home: Path) -> list[RootDisk]:
        """The same disks, where this machine finds them."""
        found: list[RootDisk] = []
        for disk in saved.disks:
            if disk.image:
                found += await self._starter.roots.of_images([disk.image])
                continue
            await self._copy(directory / Path(disk.path).name, home)
            found.append(moved(disk, home))
        return found


def moved(disk: RootDisk, home: Path) -> RootDisk:
    """The same disk in another directory, unless it is an image's."""
    return disk if disk.image else RootDisk(id=disk.id, path=str(home / Path(disk.path).name))


def _config(
    config: MachineConfig, directory: Path, saved: SavedMachine, disks: Sequence[Disk], joined: Sequence[Joined]
) -> MachineConfig:
    return replace(config, saved=directory, disks=disks, nics=_nics(saved, joined), places=saved.places)


def _nics(saved: SavedMachine, joined: Sequence[Joined]) -> list[Nic]:
    """The new pod's interfaces in the places of the old one's."""
    nics = network.nics_of(joined)
    if len(nics) != len(saved.nics):
        raise InvalidState(f"the snapshot's machine has {len(saved.nics)} interfaces, the pod has {len(nics)}")
    return [replace(nic, id=old) for nic, (old, _) in zip(nics, saved.nics, strict=True)]


def _renewal(pod: VmPod, saved: SavedMachine, joined: Sequence[Joined]) -> pb.RenewRequest:
    """Everything that must not be the same in two machines."""
    interfaces = network.interfaces_of(joined)
    for interface, (_, mac) in zip(interfaces, saved.nics, strict=True):
        interface.device.mac = mac
    return pb.RenewRequest(
        entropy=os.urandom(64),
        clock_unix_ns=time.time_ns(),
        machine_id=secrets.token_hex(16),
        hostname=pod.record.hostname,
        interfaces=interfaces,
        routes=network.routes_of(joined),
        resolv_conf=pod.content("resolv.conf"),
        hosts=pod.content("hosts"),
    )


async def renew(pod: VmPod, request: pb.RenewRequest) -> None:
    """Unavailable unless the agent confirms every part."""
    answer = await pod.agent.guest("Renew", request, pb.RenewResponse)
    wanted = {"entropy", "clock", "machine-id", "hostname", "connections"}
    wanted |= {"interfaces", "routes"} if request.interfaces else set()
    if missing := wanted - set(answer.renewed):
        raise Unavailable(f"the guest did not renew: {', '.join(sorted(missing))}", stage="agent")


async def thaw(pod: VmPod) -> None:
    """Let the containers of a restored machine go on."""
    await pod.agent.guest("Freeze", pb.FreezeRequest(frozen=False))


def guests_of(directory: Path, ids: Mapping[str, str]) -> dict[str, SavedTask]:
    """The saved containers, by the ids of their successors. ids: those to the ids that they had."""
    saved = SavedMachine.of(directory)
    try:
        return {new: saved.tasks[old] for new, old in ids.items()}
    except KeyError as error:
        raise InvalidState(f"the snapshot has no container {error.args[0]}") from None


__all__ = ["SavedMachine", "Saver", "guests_of", "moved", "renew", "require_saveable", "thaw"]

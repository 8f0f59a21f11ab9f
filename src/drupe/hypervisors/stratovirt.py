"""The StratoVirt driver: its microvm, by its command line (docs/config_guidebook.md) and over its QMP (docs/qmp.md)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from drupe.errors import DeadlineExceeded, HelperFailed, InvalidArgument, ResourceExhausted, Unavailable, Unsupported
from drupe.hypervisors.contract import (
    Device,
    Disk,
    Launch,
    Machine,
    MachineConfig,
    MachineStatus,
    Nic,
    Share,
    said,
)  # fmt: skip
from drupe.hypervisors.jails import Place, enter
from drupe.hypervisors.lines import Line, open_socket
from drupe.hypervisors.ownroot import InOwnRoot
from drupe.hypervisors.qmp import ANSWERS_WITHIN_S, Qmp
from drupe.hypervisors.qmpmachine import QmpMachine, wary
from drupe.rpc.timeouts import timeout

MOST_DISKS, MOST_NICS = 4, 2  # places that a microvm has for devices which come and go
AGENT_PORT = "drupe.agent"
AGENT_CHANNEL = "drupe.channel=tty:/dev/hvc0"  # a microvm has one port, the console's, and no names
_MIB = 1 << 20
_SAVED = ("memory", "state")
_TRY_AGAIN_S = 0.02
_SAVE_TIMEOUT_S = 300.0
_SIZE = "no: a microvm keeps the size that it has"
_NOT_SAVED = "a machine that has one cannot be saved"


class StratoVirt(InOwnRoot):
    """See InOwnRoot."""

    name: ClassVar[str] = "stratovirt"
    abilities: ClassVar[Mapping[str, str]] = said({
        "save": "limited: not with a shared directory",
        "hotplug-disk": f"limited: {MOST_DISKS} at a time, the first ones included; a disk's file stays open",
        "hotplug-nic": f"limited: {MOST_NICS} at a time, the first ones included",
        "hotplug-share": "no: a microvm takes disks and interfaces only",
        "hotplug-vfio": "no: a microvm has no PCI",
        "resize-processors": _SIZE,
        "resize-memory": _SIZE,
        "balloon": f"no: {_NOT_SAVED}",
        "9p": "no: it has no 9p",
        "vhost-user": "limited: shared directories only",
        "vsock": "no: it needs the kernel's vhost-vsock for it; the agent has a virtio serial port",
        "multiqueue": "no: an interface of a microvm has one queue",
    })  # fmt: skip
    resets_to_end: ClassVar[bool] = True

    def prepare(self, config: MachineConfig) -> Launch:
        refuse(config)
        place = self._place(config)
        jail = self._jail and enter(place.root, self.owner(config.id), self._program, self._libraries)
        return Launch(
            argv=[*(jail or [self._program]), *_words(_inside(config, place.named), place)],
            control=place.ours("qmp.sock"),
            agent=place.ours("agent.sock"),
            devices=["/dev/kvm", *(["/dev/net/tun"] if any(nic.tap for nic in config.nics) else [])],
        )

    def furnish(self, config: MachineConfig) -> None:
        place = self._place(config)
        if place.jail:
            place.root.mkdir(mode=0o711, parents=True, exist_ok=True)
            _inside(config, place.given)
            if config.saved is not None:
                place.given_files("saved", config.saved, _SAVED)

    async def open_line(self, config: MachineConfig) -> Line:
        return await open_socket(self._place(config).ours("agent.sock"))

    async def connect(self, config: MachineConfig, *, timeout_s: float) -> Machine:
        """Nothing tells when it listens: tried until `timeout_s` is over."""
        cause, place = "", self._place(config)
        with contextlib.suppress(TimeoutError):
            async with timeout(timeout_s):
                while True:
                    try:
                        qmp = await Qmp.connect(place.ours("qmp.sock"), timeout_s=ANSWERS_WITHIN_S)
                        return StratoMachine(qmp, config, place)
                    except Unavailable as error:
                        cause = error.cause
                    await asyncio.sleep(_TRY_AGAIN_S)
        raise DeadlineExceeded(f"StratoVirt was not ready within {timeout_s:g} s", stage="vmm", cause=cause)


def refuse(config: MachineConfig) -> None:
    """Raises Unsupported for what the program, or its microvm, cannot do."""
    if config.machine_type not in ("", "microvm"):
        raise InvalidArgument(
            f"StratoVirt's machines of type {config.machine_type} are not driven here", hint="microvm"
        )
    for refused, what, feature in (
        (config.accelerator != "kvm", "needs KVM", "accelerator"),
        (any(share.socket is None for share in config.shares), "shares directories by virtio-fs only", "9p"),
        (bool(config.host_devices), "has no PCI in its microvm", "hotplug-vfio"),
        (config.processors_max > config.processors, "keeps the processors of its microvm", "resize-processors"),
        (config.memory_max_bytes > config.memory_bytes, "keeps the memory of its microvm", "resize-memory"),
        (any(nic.queues > 1 for nic in config.nics), "has one queue for an interface", "multiqueue"),
        (any(d.format != "raw" for d in config.disks), "takes raw disks only", "qcow2"),
        (
            any(d.socket for d in config.disks) or any(n.socket for n in config.nics),
            "takes shared directories only",
            "vhost-user",
        ),
        (len(config.disks) > MOST_DISKS or len(config.nics) > MOST_NICS, "has no room for so many devices", "devices"),
        (bool(config.shares) and config.saved is not None, "saves no machine with a shared directory", "save"),
    ):
        if refused:
            raise Unsupported(f"StratoVirt {what}", feature=feature)


def _inside(config: MachineConfig, given: Callable[[str, Path], str]) -> MachineConfig:
    """With the names that files have for the program. given: by a name, and where the host has it."""
    return replace(
        config,
        kernel=Path(given("kernel", config.kernel)),
        initrd=Path(given("initrd", config.initrd)) if config.initrd else None,
        disks=[replace(disk, path=Path(given(disk.id, disk.path))) for disk in config.disks],
        shares=[replace(s, socket=Path(given(s.socket.name, s.socket))) if s.socket else s for s in config.shares],
    )


def _words(config: MachineConfig, place: Place) -> list[str]:
    words = " ".join(["console=ttyS0", "panic=-1", "reboot=k", "quiet", AGENT_CHANNEL, *config.append])
    initrd = ["-initrd", str(config.initrd)] if config.initrd else []
    shared = "on" if config.shared_memory else "off"
    found: list[Device] = [*config.disks, *config.nics, *config.shares]
    devices = [word for device in found for word in _cold(device)]
    incoming = [] if config.saved is None else ["-incoming", f"file:{place.named('saved', config.saved)}"]
    return [
        "-machine", f"microvm,dump-guest-core=off,mem-share={shared}", "-smp", str(config.processors),
        "-m", f"{config.memory_bytes // _MIB}M", "-kernel", str(config.kernel), *initrd, "-append", words,
        # It takes its standard output for a console only where its standard input is a terminal.
        "-qmp", f"unix:{place.own('qmp.sock')},server,nowait",
        "-serial", f"socket,path={place.own('console.sock')},server,nowait",
        "-device", "virtio-serial-device,id=ports",
        "-chardev", f"socket,id=agent,path={place.own('agent.sock')},server,nowait",
        "-device", f"virtconsole,id={AGENT_PORT},chardev=agent,nr=0", *devices, *incoming,
    ]  # fmt: skip


def _cold(device: Device) -> list[str]:
    """The words for a device that is there from the start."""
    if isinstance(device, Disk):
        only, direct = ("on" if device.read_only else "off"), ("on" if device.direct else "off")
        drive = f"id={device.id},file={device.path},readonly={only},direct={direct}"
        return ["-drive", drive, "-device", f"virtio-blk-device,id={device.id},drive={device.id},{_serial(device)}"]
    if isinstance(device, Nic):
        backend = f"fds={device.descriptor}" if device.descriptor >= 0 else f"ifname={device.tap}"
        netdev = f"tap,id={device.id},{backend}"
        return ["-netdev", netdev, "-device", f"virtio-net-device,id={device.id},netdev={device.id},mac={device.mac}"]
    if isinstance(device, Share):
        socket = f"socket,id=c-{device.id},path={device.socket}"
        share = f"vhost-user-fs-device,id={device.id},chardev=c-{device.id},tag={device.tag}"
        return ["-chardev", socket, "-device", share]
    raise Unsupported("StratoVirt has no PCI in its microvm", feature="hotplug-vfio")


def _serial(disk: Disk) -> str:
    return f"serial={disk.id[:20]}"


@wary
class StratoMachine(QmpMachine):
    """See the contract. Which places are taken is beside it in files, for another daemon: its QMP does not tell."""

    def __init__(self, qmp: Qmp, config: MachineConfig, place: Place) -> None:
        super().__init__(qmp, config)
        self._place = place
        self._plugged = config.dir / "plugged"
        self._plugged.mkdir(exist_ok=True)

    async def boot(self, *, timeout_s: float) -> None:
        """It runs as soon as its program does; one that was saved may stand still, as it did then."""
        if self._config.saved is not None and (await self.status()).state == "paused":
            await self._qmp.call("cont", timeout_s=timeout_s)

    async def status(self) -> MachineStatus:
        told = str((await self._qmp.call("query-status"))["status"])
        processors = await self._qmp.call("query-cpus")
        state: Any = {"running": "running", "paused": "paused", "guest-panicked": "panicked"}.get(told, "starting")
        return MachineStatus(state, len(processors), self._config.memory_bytes, told)

    async def save(self, directory: Path) -> None:
        if self._config.shares:
            raise Unsupported("StratoVirt saves no machine with a shared directory", feature="save")
        deadline = time.monotonic() + _SAVE_TIMEOUT_S
        target = self._place.make_dir("saved") if self._place.jail else str(directory)
        await self._qmp.call("migrate", {"uri": f"file:{target}"}, timeout_s=_SAVE_TIMEOUT_S)
        while time.monotonic() < deadline:
            status = str((await self._qmp.call("query-migrate")).get("status", "")).lower()
            if status == "completed":
                for name in _SAVED if self._place.jail else ():
                    self._place.take(f"saved/{name}", directory / name)
                return
            if status == "failed":
                raise HelperFailed("the machine cannot be saved", stage="vmm")
            await asyncio.sleep(0.02)
        raise DeadlineExceeded(f"the machine was not saved within {_SAVE_TIMEOUT_S:g} s", stage="vmm")

    async def add(self, device: Device) -> None:
        if not isinstance(device, Disk | Nic):
            raise Unsupported("StratoVirt's microvm takes disks and interfaces only", feature="hotplug")
        if (self._plugged / device.id).exists() or device.id in self._first(device):
            raise HelperFailed(f"{device.id} is plugged in already", stage="vmm")
        place = self._free(device)
        try:
            await (self._add_disk(device, place) if isinstance(device, Disk) else self._add_nic(device, place))
        finally:
            self._place.settle()
        (self._plugged / device.id).write_text(f"{type(device).__name__} {place}")

    async def _add_disk(self, disk: Disk, place: int) -> None:
        path = self._place.given(disk.id, disk.path, read_only=disk.read_only)
        file = {"driver": "file", "filename": path}
        node = {"node-name": disk.id, "file": file, "cache": {"direct": disk.direct}, "read-only": disk.read_only}
        await self._qmp.call("blockdev-add", node)
        await self._plug({"driver": "virtio-blk-mmio", "id": disk.id, "drive": disk.id, "serial": disk.id[:20]}, place)

    async def _add_nic(self, nic: Nic, place: int) -> None:
        backend = {"ifname": nic.tap}
        if nic.descriptor >= 0:
            await self._qmp.give(nic.id, nic.descriptor)
            backend = {"fds": nic.id}
        await self._qmp.call("netdev_add", {"id": nic.id, **backend})
        # Its microvm looks for the backend's name in "chardev".
        device = {"driver": "virtio-net-mmio", "id": nic.id, "netdev": nic.id, "chardev": nic.id, "mac": nic.mac}
        await self._plug(device, place)

    async def _plug(self, device: dict[str, Any], place: int) -> None:
        try:
            await self._qmp.call("device_add", {**device, "addr": hex(place)})
        except HelperFailed:
            with contextlib.suppress(HelperFailed):  # it takes the backend along
                await self._qmp.call("device_del", {"id": device["id"]})
            raise

    def _first(self, device: Disk | Nic) -> list[str]:
        """The devices of this sort that are there from the start, in their places."""
        return [one.id for one in (self._config.disks if isinstance(device, Disk) else self._config.nics)]

    def _free(self, device: Disk | Nic) -> int:
        kind, most = type(device).__name__, MOST_DISKS if isinstance(device, Disk) else MOST_NICS
        taken = {path.read_text() for path in self._plugged.iterdir()}
        for place in range(len(self._first(device)), most):
            if f"{kind} {place}" not in taken:
                return place
        raise ResourceExhausted(f"the machine has no room for another device: {most} are plugged in", stage="vmm")

    async def remove(self, device_id: str, *, timeout_s: float) -> None:
        place = self._plugged / device_id
        if place.exists():
            await self._qmp.call("device_del", {"id": device_id}, timeout_s=timeout_s)
            place.unlink(missing_ok=True)
            self._place.drop(device_id)

    async def resize(self, *, processors: int | None = None, memory_bytes: int | None = None) -> MachineStatus:
        if processors not in (None, self._config.processors) or memory_bytes not in (None, self._config.memory_bytes):
            raise Unsupported("StratoVirt's microvm keeps the size that it has", feature="resize")
        return await self.status()

    async def metrics(self) -> Mapping[str, float]:
        """It tells none."""
        return {}

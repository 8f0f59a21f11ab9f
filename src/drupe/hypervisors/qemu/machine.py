"""A machine of QEMU that runs, over QMP (QEMU's QMP reference manual)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.errors import DeadlineExceeded, DrupeError, HelperFailed, ResourceExhausted, Unavailable, Unsupported
from drupe.hypervisors.contract import Device, Disk, MachineConfig, MachineStatus, Nic, Share
from drupe.hypervisors.qemu.arguments import (
    BRIDGE,
    BRIDGE_SLOTS,
    HOLES,
    MEMORY_DEVICE,
    MEMORY_STEP_BYTES,
    ROOT_PORTS,
    SHARE_SLOT,
    vectors_of,
)
from drupe.hypervisors.qmp import Qmp
from drupe.hypervisors.qmpmachine import QmpMachine, wary
from drupe.hypervisors.words import readable
from drupe.linux.unix_sockets import short_name
from drupe.rpc.timeouts import timeout

# virtio 1.0 alone: behind the bridge there are no I/O ports for what was before
_BLK, _NET = "virtio-blk-pci-non-transitional", "virtio-net-pci-non-transitional"
_VHOST_BLK = "vhost-user-blk-pci-non-transitional"
SAVED_STATE = "devices"
SAVED_MEMORY = "memory"
_SAVE_TIMEOUT_S = 300.0
_ASK_AGAIN_S = 2.0
_CPU_LEAVES_WITHIN_S = 30.0
_GUEST_MOVES_MEMORY_WITHIN_S = 10.0
_FAST_BYTES_S = 1 << 40  # to a file: no network is to be spared
_STATES = {
    "running": "running", "shutdown": "stopped", "guest-panicked": "panicked",
    "prelaunch": "starting", "inmigrate": "starting", "restore-vm": "starting",
    "paused": "paused", "suspended": "paused", "postmigrate": "paused", "save-vm": "paused", "finish-migrate": "paused",
}  # fmt: skip


async def connect(config: MachineConfig, machine: str, *, timeout_s: float) -> QemuMachine:
    """The machine whose monitor listens at ``config.dir/qmp.sock``."""
    return QemuMachine(await Qmp.connect(config.dir / "qmp.sock", timeout_s=timeout_s), config, machine)


@wary
class QemuMachine(QmpMachine):
    """See the contract."""

    def __init__(self, qmp: Qmp, config: MachineConfig, machine: str) -> None:
        super().__init__(qmp, config)
        self._machine = machine

    # -- life -------------------------------------------------------------------------------------------------------

    async def boot(self, *, timeout_s: float) -> None:
        """It runs as soon as its program does, unless it goes on from what was saved, which had no shares."""
        if self._config.saved is not None:
            await self._load(self._config.saved, timeout_s)
            for share in self._config.shares:
                await self._add_share(share)
            await self._qmp.call("cont", timeout_s=timeout_s)

    async def _load(self, directory: Path, timeout_s: float) -> None:
        await self._set_capabilities()
        descriptor = os.open(directory / SAVED_STATE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._qmp.give("state", descriptor)
        finally:
            os.close(descriptor)
        await self._qmp.call("migrate-incoming", {"uri": "fd:state"})
        await self._migrated("the saved machine cannot be loaded", timeout_s)

    async def _set_capabilities(self) -> None:
        wanted = [{"capability": "x-ignore-shared", "state": True}, {"capability": "events", "state": True}]
        await self._qmp.call("migrate-set-capabilities", {"capabilities": wanted})

    async def _migrated(self, failed: str, timeout_s: float) -> None:
        """Wait for the end of a migration; it takes milliseconds where memory stays in its file."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            told = await self._qmp.call("query-migrate")
            if told.get("status") == "completed":
                return
            if told.get("status") in ("failed", "cancelled"):
                raise HelperFailed(failed, stage="vmm", cause=readable(str(told.get("error-desc", told["status"]))))
            await asyncio.sleep(0.002)
        raise DeadlineExceeded(failed, stage="vmm", cause=f"not within {timeout_s:g} s")

    async def status(self) -> MachineStatus:
        told = await self._qmp.call("query-status")
        memory = await self._qmp.call("query-memory-size-summary")
        size = int(memory["base-memory"]) + int(memory.get("plugged-memory", 0))
        processors = await self._qmp.call("query-cpus-fast")
        state: Any = _STATES.get(told["status"], "stopped")
        return MachineStatus(state, len(processors), size, readable(str(told["status"])))

    async def save(self, directory: Path) -> None:
        """Memory in a file of the caller's (`MachineConfig.memory_file`) is not written again: it is there."""
        self._refuse_microvm("is not saved", "save")
        await self._set_capabilities()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(directory / SAVED_STATE, flags, 0o600)
        try:
            await self._qmp.give("state", descriptor)
        finally:
            os.close(descriptor)
        await self._qmp.call("migrate-set-parameters", {"max-bandwidth": _FAST_BYTES_S})
        await self._qmp.call("migrate", {"uri": "fd:state"})
        await self._migrated("the machine cannot be saved", _SAVE_TIMEOUT_S)

    async def metrics(self) -> Mapping[str, float]:
        told: dict[str, float] = {}
        for node in await self._qmp.call("query-blockstats"):
            name = str(node.get("qdev") or node.get("node-name") or "disk").rpartition("/")[2]
            told[f"disk_{name}_read_bytes"] = float(node["stats"]["rd_bytes"])
            told[f"disk_{name}_written_bytes"] = float(node["stats"]["wr_bytes"])
        with contextlib.suppress(DrupeError):
            told["balloon_actual_bytes"] = float((await self._qmp.call("query-balloon"))["actual"])
        return told

    # -- devices ----------------------------------------------------------------------------------------------------

    async def add(self, device: Device) -> None:
        self._refuse_microvm("takes no devices while it runs", "hotplug")
        if await self._has(device.id):
            raise HelperFailed(f"the machine has a device {device.id} already", stage="vmm")
        if isinstance(device, Disk):
            await self._add_disk(device)
        elif isinstance(device, Nic):
            await self._add_nic(device)
        elif isinstance(device, Share):
            await self._add_share(device)
        else:
            await self._plug({"driver": "vfio-pci", "id": device.id, "host": device.address}, express=True)

    async def _has(self, device_id: str) -> bool:
        """Asked before a descriptor is handed over: its arrival makes it blocking (QEMU, qio_channel_socket_copy_fds),
        and a tap that is in use would from then on hold up the whole program."""
        found = await self._qmp.call("qom-list", {"path": "/machine/peripheral"})
        return any(one["name"] == device_id for one in found)

    def _refuse_microvm(self, what: str, feature: str) -> None:
        if self._machine == "microvm":
            raise Unsupported(f"a machine of type microvm {what}", feature=feature)

    async def _add_disk(self, disk: Disk) -> None:
        """The file is opened here: the program has no file system any more."""
        if disk.socket is not None:
            await self._add_socket(disk.id, disk.socket)
            await self._plug({"driver": _VHOST_BLK, "id": disk.id, "chardev": f"c-{disk.id}"})
            return
        descriptor = os.open(disk.path, (os.O_RDONLY if disk.read_only else os.O_RDWR) | os.O_CLOEXEC)
        is_block = stat.S_ISBLK(os.fstat(descriptor).st_mode)
        try:
            number = await self._qmp.add_fd(descriptor)
        finally:
            os.close(descriptor)
        file = {"driver": "host_device" if is_block else "file", "filename": f"/dev/fdset/{number}", "locking": "off"}
        node = {"node-name": f"n-{disk.id}", "driver": disk.format, "read-only": disk.read_only, "file": file}
        await self._qmp.call("blockdev-add", node)
        try:
            plain = {} if disk.read_only else dict.fromkeys(HOLES, False)
            await self._plug({"driver": _BLK, "id": disk.id, "drive": f"n-{disk.id}", "serial": disk.id[:20], **plain})
        except DrupeError:
            with contextlib.suppress(DrupeError):
                await self._qmp.call("blockdev-del", {"node-name": f"n-{disk.id}"})
            raise

    async def _add_nic(self, nic: Nic) -> None:
        name = f"n-{nic.id}"
        if nic.socket is not None:
            await self._add_socket(nic.id, nic.socket)
            await self._qmp.call("netdev_add", {"type": "vhost-user", "id": name, "chardev": f"c-{nic.id}"})
            vectors = vectors_of(nic, self._config.accelerator)
            many = {} if vectors is None else {"vectors": vectors}
            await self._plug({"driver": _NET, "id": nic.id, "netdev": name, "mac": nic.mac, "romfile": "", **many})
            return
        names = [f"{name}-{number}" for number in range(1 + len(nic.more))]
        for queue, descriptor in zip(names, (nic.descriptor, *nic.more), strict=True):
            await self._qmp.give(queue, descriptor)
        await self._qmp.call("netdev_add", {"type": "tap", "id": name, "fds": ":".join(names)})
        device: dict[str, Any] = {"driver": _NET, "id": nic.id, "netdev": name, "mac": nic.mac}
        many = {"mq": True, "vectors": 2 * len(names) + 2} if nic.more else {}
        try:
            await self._plug({**device, "host_mtu": nic.mtu, "romfile": "", **many})
        except DrupeError:
            with contextlib.suppress(DrupeError):
                await self._qmp.call("netdev_del", {"id": name})
            raise

    async def _add_share(self, share: Share) -> None:
        if share.socket is None:
            raise Unsupported("9p shares are there from the start or not at all", feature="hotplug-share")
        await self._add_socket(share.id, share.socket)
        device = {"driver": "vhost-user-fs-pci", "id": share.id, "chardev": f"c-{share.id}", "tag": share.tag}
        await self._plug(device, first=[SHARE_SLOT])

    async def _add_socket(self, device_id: str, path: Path) -> None:
        """A vhost-user back-end's, connected here: the program has no file system any more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            try:
                with short_name(path) as name:
                    sock.connect(name)
            except OSError as error:
                what = f"nothing serves {path}"
                raise Unavailable(what, stage="devices", cause=error.strerror or "") from None
            await self._qmp.give(f"s-{device_id}", sock.fileno())
        address = {"type": "fd", "data": {"str": f"s-{device_id}"}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        await self._qmp.call("chardev-add", {"id": f"c-{device_id}", "backend": backend})

    @property
    def keeps_places(self) -> bool:
        """A share has a slot of its own, of q35's bridge."""
        return self._machine == "q35"

    async def withdraw(self, device_id: str) -> None:
        """By the property of QEMU's objects that says whether a device is there (qom-list); `device_del` would ask the
        guest, which would forget the device then."""
        if not self.keeps_places:
            await super().withdraw(device_id)
        gone = {"path": f"/machine/peripheral/{device_id}", "property": "realized", "value": False}
        await self._qmp.call("qom-set", gone)

    async def _plug(self, device: dict[str, Any], *, express: bool = False, first: Sequence[int] = ()) -> None:
        """express: into a port of PCI Express, of which there are few. first: slots that are its own."""
        taken = set((await self.places()).values())
        ports = [{"bus": f"port{n}"} for n in range(ROOT_PORTS[self._machine])]
        slots = [{"bus": BRIDGE, "addr": f"{slot:#x}"} for slot in (*first, *BRIDGE_SLOTS)]
        places = ports if express or self._machine != "q35" else slots
        free = next((place for place in places if _words(place) not in taken), None)
        if free is None:
            raise ResourceExhausted("the machine has no room for another device", cause=f"{len(places)} are plugged in")
        await self._qmp.call("device_add", {**device, **free})

    async def places(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for device in (device for bus in await self._qmp.call("query-pci") for device in bus["devices"]):
            if device["qdev_id"] and not device.get("pci_bridge"):
                found[device["qdev_id"]] = f"bus=pcie.0,addr={device['slot']:#x}"
            for behind in device.get("pci_bridge", {}).get("devices", ()):
                slot = {"addr": f"{behind['slot']:#x}"} if device["qdev_id"] == BRIDGE else {}
                found[behind["qdev_id"]] = _words({"bus": device["qdev_id"], **slot})
        return found

    async def remove(self, device_id: str, *, timeout_s: float) -> None:
        gone = self._gone.setdefault(device_id, asyncio.get_running_loop().create_future())
        try:
            async with timeout(timeout_s):
                while await self._ask_away(device_id) and not gone.done():
                    await asyncio.wait({gone}, timeout=_ASK_AGAIN_S)
            if gone.done() and gone.result():
                raise HelperFailed(f"the guest does not let go of {device_id}", stage="vmm", cause=gone.result())
        except TimeoutError:
            raise DeadlineExceeded(f"the guest did not let go of {device_id} within {timeout_s:g} s") from None
        finally:
            self._gone.pop(device_id, None)
        await self._drop_backend(device_id)

    async def _ask_away(self, device_id: str) -> bool:
        """Ask the guest for a device; whether it is there. A guest that is busy with its coming does not hear it, so
        this is done again until it does."""
        try:
            await self._qmp.call("device_del", {"id": device_id})
        except HelperFailed as error:
            if "in the process of unplug" not in error.cause and "not found" not in error.cause:
                raise
            return "not found" not in error.cause
        return True

    async def _drop_backend(self, device_id: str) -> None:
        for command, key, name in (
            ("blockdev-del", "node-name", f"n-{device_id}"),
            ("netdev_del", "id", f"n-{device_id}"),
            ("chardev-remove", "id", f"c-{device_id}"),
        ):
            with contextlib.suppress(HelperFailed):
                await self._qmp.call(command, {key: name})

    # -- size -------------------------------------------------------------------------------------------------------

    async def resize(self, *, processors: int | None = None, memory_bytes: int | None = None) -> MachineStatus:
        self._refuse_microvm("keeps the size that it has", "resize")
        if processors is not None:
            await self._set_processors(processors)
        if memory_bytes is not None:
            await self._set_memory(memory_bytes)
        return await self.status()

    async def _set_processors(self, wanted: int) -> None:
        if self._machine == "virt":
            raise Unsupported("a virt machine of QEMU keeps its processors", feature="resize-processors")
        slots = await self._qmp.call("query-hotpluggable-cpus")
        here = [slot for slot in slots if "qom-path" in slot]
        free = [slot for slot in slots if "qom-path" not in slot]
        if wanted > len(slots) or wanted < 1:
            raise ResourceExhausted(f"the machine was made for 1 to {len(slots)} processors, not {wanted}")
        for slot in sorted(free, key=_place)[: max(wanted - len(here), 0)]:
            name = "cpu-" + "-".join(map(str, _place(slot)))
            await self._qmp.call("device_add", {"driver": slot["type"], "id": name, **slot["props"]})
        plugged = [slot for slot in here if "/peripheral/" in slot["qom-path"]]
        for slot in sorted(plugged, key=_place, reverse=True)[: max(len(here) - wanted, 0)]:
            await self.remove(str(slot["qom-path"]).rpartition("/")[2], timeout_s=_CPU_LEAVES_WITHIN_S)

    async def _set_memory(self, wanted: int) -> None:
        """Growth is a virtio-mem device's, which the guest fills and empties; below its first size the balloon takes
        what is given back."""
        base = self._config.memory_bytes
        if wanted > max(self._config.memory_max_bytes, base):
            raise ResourceExhausted(f"the machine was made for at most {self._config.memory_max_bytes} bytes of memory")
        growth = -(-max(wanted - base, 0) // MEMORY_STEP_BYTES) * MEMORY_STEP_BYTES
        if self._config.memory_max_bytes > base:
            device = f"/machine/peripheral/{MEMORY_DEVICE}"
            asked = {"path": device, "property": "requested-size", "value": growth}
            await self._qmp.call("qom-set", asked)
            await self._grown(growth)
        await self._qmp.call("balloon", {"value": min(wanted, base) + growth})

    async def _grown(self, wanted: int) -> None:
        """Wait until the guest has taken or given what was asked, or time is over: what is reached tells."""
        with contextlib.suppress(TimeoutError):
            async with timeout(_GUEST_MOVES_MEMORY_WITHIN_S):
                while await self._growth() != wanted:  # noqa: ASYNC110 its event comes before the guest is done
                    await asyncio.sleep(0.02)

    async def _growth(self) -> int:
        told = await self._qmp.call("query-memory-devices")
        return sum(int(one["data"]["size"]) for one in told if one["type"] == "virtio-mem")


def _words(place: Mapping[str, str]) -> str:
    """Where a device sits, as the command line says it."""
    return ",".join(f"{key}={value}" for key, value in place.items())


def _place(slot: Mapping[str, Any]) -> tuple[int, ...]:
    """Where a processor sits."""
    props = slot["props"]
    return tuple(int(props.get(name, 0)) for name in ("socket-id", "die-id", "core-id", "thread-id"))

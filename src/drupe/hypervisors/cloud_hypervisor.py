"""The Cloud Hypervisor driver: its REST API (vmm/src/api/openapi/cloud-hypervisor.yaml) over a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from drupe.errors import DeadlineExceeded, DrupeError, HelperFailed, ResourceExhausted, Unavailable, Unsupported
from drupe.hypervisors.contract import (
    Device,
    Disk,
    HostDevice,
    Launch,
    Machine,
    MachineConfig,
    MachineStatus,
    Nic,
    Share,
    said,
)  # fmt: skip
from drupe.hypervisors.jails import Place, enter
from drupe.hypervisors.lines import Line
from drupe.hypervisors.ownroot import InOwnRoot
from drupe.hypervisors.rest import Lifeline, Rest
from drupe.hypervisors.restmachine import RestMachine, connected
from drupe.hypervisors.vsock import AGENT_CHANNEL, open_hybrid

GUEST_CID = 3
_BASE = "/api/v1"
_SAVE_TIMEOUT_S = 300.0
_MEMORY_STEP_BYTES = 128 << 20  # what virtio-mem's room is a multiple of
_STATES = {"Created": "starting", "Running": "running", "Paused": "paused", "BreakPoint": "paused"}
_NAMED = ("serial", "vsock", "disks", "net", "fs", "devices")
_SAVED = ("config.json", "memory-ranges", "state.json")
_SYSFS = ("/sys/bus/pci", "/sys/devices", "/sys/kernel/iommu_groups")  # what leads to a device of the host
_LISTS = {Disk: ("disks", "disk"), Nic: ("net", "net"), Share: ("fs", "fs"), HostDevice: ("devices", "device")}


class CloudHypervisor(InOwnRoot):
    """See InOwnRoot."""

    name: ClassVar[str] = "cloud-hypervisor"
    abilities: ClassVar[Mapping[str, str]] = said({
        "clone": "no: each machine reads the saved memory into its own",
        "9p": "no: it has no 9p",
        "serial": "no: the agent is reached over hybrid vsock",
        "resize-memory": "limited: grows by virtio-mem; below its first size the balloon takes what is given back",
    })  # fmt: skip
    opens_taps: ClassVar[bool] = False  # it would set them up, for which it needs CAP_NET_ADMIN

    def prepare(self, config: MachineConfig) -> Launch:
        refuse(config)
        place = self._place(config)
        files = ("--api-socket", f"path={place.own('api.sock')}", "--event-monitor", f"path={place.own('events.json')}")
        shown = [*self._libraries, *(_SYSFS if config.host_devices else [])]
        jail = self._jail and enter(place.root, self.owner(config.id), self._program, shown)
        return Launch(
            argv=[*(jail or [self._program]), *files],
            control=place.ours("api.sock"),
            agent=place.ours("vsock.sock"),
            devices=["/dev/kvm", *(["/dev/net/tun"] if any(nic.tap for nic in config.nics) else [])],
        )

    async def open_line(self, config: MachineConfig) -> Line:
        return await open_hybrid(self._place(config).ours("vsock.sock"))

    async def connect(self, config: MachineConfig, *, timeout_s: float) -> Machine:
        place = self._place(config)
        rest = Rest(place.ours("api.sock"), "cloud-hypervisor", base=_BASE)
        return CloudMachine(rest, config, await connected(rest, timeout_s=timeout_s), place)


def refuse(config: MachineConfig) -> None:
    """Raises Unsupported for what the program cannot do."""
    if config.accelerator != "kvm":
        raise Unsupported("Cloud Hypervisor needs KVM", feature="accelerator", hint="QEMU runs machines without it")
    if any(share.socket is None for share in config.shares):
        raise Unsupported("Cloud Hypervisor shares directories by virtio-fs only", feature="9p")
    if config.saved and config.share_memory:
        raise Unsupported("Cloud Hypervisor's machines cannot share saved memory", feature="clone")


def machine_body(config: MachineConfig, vsock: str) -> dict[str, Any]:
    """The VmConfig. vsock: where the program makes that socket. Interfaces with a descriptor are added after it."""
    room = -(-max(config.memory_max_bytes - config.memory_bytes, 0) // _MEMORY_STEP_BYTES) * _MEMORY_STEP_BYTES
    memory: dict[str, Any] = {"size": config.memory_bytes, "shared": config.shared_memory}
    if room:
        memory |= {"hotplug_method": "VirtioMem", "hotplug_size": room}
    processors = {"boot_vcpus": config.processors, "max_vcpus": max(config.processors, config.processors_max)}
    body: dict[str, Any] = {
        "cpus": processors,
        "memory": memory,
        "payload": _payload(config),
        "rng": {"src": "/dev/urandom"},
        "balloon": {"size": 0, "deflate_on_oom": True, "free_page_reporting": True},
        "serial": {"mode": "Tty"},  # standard output, which whoever starts it keeps within bounds
        "console": {"mode": "Off"},
        "vsock": {"id": "vsock", "cid": GUEST_CID, "socket": vsock},
        "pvpanic": True,
    }
    devices: tuple[Device, ...] = (*config.disks, *config.nics, *config.shares, *config.host_devices)
    for device in devices:
        if not isinstance(device, Nic) or device.descriptor < 0:
            body.setdefault(_LISTS[type(device)][0], []).append(device_body(device))
    return body


def _payload(config: MachineConfig) -> dict[str, str]:
    words = " ".join(["console=ttyS0", "panic=-1", "quiet", AGENT_CHANNEL, *config.append])
    payload = {"kernel": str(config.kernel), "cmdline": words}
    return payload | ({"initramfs": str(config.initrd)} if config.initrd else {})


def device_body(device: Device) -> dict[str, Any]:
    """DiskConfig, NetConfig, FsConfig or DeviceConfig."""
    if isinstance(device, Disk):
        return _disk_body(device)
    if isinstance(device, Nic):
        return _nic_body(device)
    if isinstance(device, Share):
        if device.socket is None:
            raise Unsupported("Cloud Hypervisor shares directories by virtio-fs only", feature="9p")
        return {"id": device.id, "tag": device.tag, "socket": str(device.socket), "num_queues": 1, "queue_size": 1024}
    return {"id": device.id, "path": f"/sys/bus/pci/devices/{device.address}"}


def _disk_body(disk: Disk) -> dict[str, Any]:
    """The format is said: guessed, a guest could write itself another one."""
    body: dict[str, Any] = {"id": disk.id, "serial": disk.id}
    if disk.socket is not None:
        return body | {"vhost_user": True, "vhost_socket": str(disk.socket)}
    kind = {"raw": "Raw", "qcow2": "Qcow2"}[disk.format]
    return body | {"path": str(disk.path), "readonly": disk.read_only, "direct": disk.direct, "image_type": kind}


def _nic_body(nic: Nic) -> dict[str, Any]:
    """The MTU is the agent's to set: given one, it would set the tap's, for which it has no right."""
    body: dict[str, Any] = {"id": nic.id, "mac": nic.mac, "num_queues": 2 * (len(_descriptors(nic)) or nic.queues)}
    if nic.socket is not None:
        return body | {"mtu": nic.mtu, "vhost_user": True, "vhost_socket": str(nic.socket)}
    return body if nic.descriptor >= 0 else body | {"tap": nic.tap}


def _descriptors(nic: Nic) -> list[int]:
    """One for each pair of queues."""
    return [nic.descriptor, *nic.more] if nic.descriptor >= 0 else []


class CloudMachine(RestMachine):
    """See the contract."""

    def __init__(self, rest: Rest, config: MachineConfig, lifeline: Lifeline, place: Place) -> None:
        super().__init__(rest, config, lifeline)
        self._place = place

    async def boot(self, *, timeout_s: float) -> None:
        try:
            await self._boot(time.monotonic() + timeout_s)
        finally:
            self._place.settle()

    async def _boot(self, deadline: float) -> None:
        body = machine_body(self._inside(), self._place.own("vsock.sock"))
        if self._config.saved is not None:
            await self._restore(self._config.saved, body, deadline - time.monotonic())
            return
        await self._rest.call("PUT", "/vm.create", body, timeout_s=deadline - time.monotonic())
        for nic in self._config.nics:
            if nic.descriptor >= 0:
                await self._add(nic)
        await self._rest.call("PUT", "/vm.boot", timeout_s=max(deadline - time.monotonic(), 0.001))

    def _inside(self) -> MachineConfig:
        """With the names that files have for the program."""
        config, given = self._config, self._place.given
        for device in config.host_devices:
            self._place.host_device(device.address)
        return replace(
            config,
            kernel=Path(given("kernel", config.kernel)),
            initrd=Path(given("initrd", config.initrd)) if config.initrd else None,
            disks=[placed(self._place, disk) for disk in config.disks],
            nics=[placed(self._place, nic) for nic in config.nics],
            shares=[placed(self._place, share) for share in config.shares],
        )

    async def _restore(self, directory: Path, body: Mapping[str, Any], timeout_s: float) -> None:
        """What was saved names files and sockets of the machine that it was: a copy of its configuration with our own
        names stands beside its memory."""
        own = self._config.dir / "restore"
        own.mkdir(exist_ok=True)
        saved = json.loads((directory / "config.json").read_text())
        kept = {name: value for name, value in saved.items() if name not in _NAMED}
        named = {name: body[name] for name in _NAMED if name in body}
        (own / "config.json").write_text(json.dumps(kept | named))
        for name in ("memory-ranges", "state.json"):
            (own / name).unlink(missing_ok=True)
            (own / name).symlink_to(directory / name)
        source = self._place.given_files("restore", own, _SAVED)
        await self._rest.call("PUT", "/vm.restore", {"source_url": Path(source).as_uri()}, timeout_s=timeout_s)
        await self.resume()

    async def status(self) -> MachineStatus:
        try:
            told = await self._rest.call("GET", "/vm.info")
        except HelperFailed as error:  # there is no machine yet
            return MachineStatus("starting", self._config.processors, self._config.memory_bytes, error.cause)
        processors = int(told["config"]["cpus"]["boot_vcpus"])
        memory = int(told.get("memory_actual_size") or told["config"]["memory"]["size"])
        state: Any = "panicked" if self._why() == "panic" else _STATES.get(told["state"], "stopped")
        return MachineStatus(state, processors, memory, str(told["state"]))

    def _why(self) -> str:
        """By the last word of the event file that says it."""
        found = "killed"
        with contextlib.suppress(OSError):
            for source, event in _events(self._place.read("events.json")):
                if (source, event) == ("guest", "panic"):
                    return "panic"
                if source == "vm" and event in ("shutdown", "rebooting"):
                    found = "reset" if event == "rebooting" else "shutdown"
        return found

    async def pause(self) -> None:
        await self._rest.call("PUT", "/vm.pause")

    async def resume(self) -> None:
        await self._rest.call("PUT", "/vm.resume")

    async def save(self, directory: Path) -> None:
        target = Path(self._place.make_dir("saved")) if self._place.jail else directory
        await self._rest.call("PUT", "/vm.snapshot", {"destination_url": target.as_uri()}, timeout_s=_SAVE_TIMEOUT_S)
        for name in _SAVED if self._place.jail else ():
            self._place.take(f"saved/{name}", directory / name)

    async def add(self, device: Device) -> None:
        if await self._has(device.id):
            raise HelperFailed(f"{device.id} is plugged in already", stage="vmm")
        try:
            await self._add(placed(self._place, device))
        finally:
            self._place.settle()

    async def _add(self, device: Device) -> None:
        fds = _descriptors(device) if isinstance(device, Nic) else []
        await self._rest.call("PUT", f"/vm.add-{_LISTS[type(device)][1]}", device_body(device), fds=fds)

    async def remove(self, device_id: str, *, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        if not await self._has(device_id):
            return
        self._place.drop(device_id)
        await self._rest.call("PUT", "/vm.remove-device", {"id": device_id}, timeout_s=timeout_s)
        pause_s = 0.01
        while await self._has(device_id):  # the API has no event for it
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"the guest did not let go of {device_id} within {timeout_s:g} s", stage="vmm")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.2)

    async def _has(self, device_id: str) -> bool:
        told = await self._rest.call("GET", "/vm.info")
        return device_id in (told.get("device_tree") or {})

    async def resize(self, *, processors: int | None = None, memory_bytes: int | None = None) -> MachineStatus:
        body: dict[str, int] = {}
        if processors is not None:
            if not 1 <= processors <= max(self._config.processors_max, self._config.processors):
                raise ResourceExhausted(f"the machine was made for 1 to {self._config.processors_max} processors")
            body["desired_vcpus"] = processors
        if memory_bytes is not None:
            body |= self._memory_body(memory_bytes)
        await self._rest.call("PUT", "/vm.resize", body)
        return await self.status()

    def _memory_body(self, wanted: int) -> dict[str, int]:
        base = self._config.memory_bytes
        if wanted > max(self._config.memory_max_bytes, base):
            raise ResourceExhausted(f"the machine was made for at most {self._config.memory_max_bytes} bytes of memory")
        growable = self._config.memory_max_bytes > base
        ram = {"desired_ram": max(wanted, base)} if growable else {}
        return ram | {"desired_balloon": max(base - wanted, 0)}

    async def metrics(self) -> Mapping[str, float]:
        counters = await self._rest.call("GET", "/vm.counters")
        return {
            f"{device}_{name}": float(value)
            for device, values in (counters or {}).items()
            for name, value in values.items()
        }

    async def quit(self, *, timeout_s: float) -> None:
        with contextlib.suppress(Unavailable):
            await self._rest.call("PUT", "/vmm.shutdown", timeout_s=timeout_s)
        await self._gone_within(timeout_s)


D = TypeVar("D", bound=Device)


def placed(place: Place, device: D) -> D:
    """With the names that its files have for the program."""
    if not isinstance(device, HostDevice) and device.socket is not None:
        return replace(device, socket=Path(place.given(device.id, device.socket)))
    if isinstance(device, Disk):
        return replace(device, path=Path(place.given(device.id, device.path, read_only=device.read_only)))
    return device


def _events(text: str) -> list[tuple[str, str]]:
    """(source, event) of each; they are JSON objects one after the other, and the last may be half written."""
    found, at, decoder = [], 0, json.JSONDecoder()
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError, DrupeError):
        while start := text.find("{", at) + 1:
            event, at = decoder.raw_decode(text, start - 1)
            found.append((str(event["source"]), str(event["event"])))
    return found

"""The Firecracker driver: its REST API (src/firecracker/swagger/firecracker.yaml) over a Unix socket; its jailer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from drupe.errors import HelperFailed, ResourceExhausted, Unsupported
from drupe.hypervisors.contract import (
    Device,
    Disk,
    Hypervisor,
    Launch,
    Machine,
    MachineConfig,
    MachineStatus,
    Nic,
    said,
)  # fmt: skip
from drupe.hypervisors.jails import Jail, Place, name_in_jail
from drupe.hypervisors.lines import Line
from drupe.hypervisors.owners import uid_of
from drupe.hypervisors.rest import ANSWERS_WITHIN_S, Lifeline, Rest
from drupe.hypervisors.restmachine import RestMachine, connected
from drupe.hypervisors.vsock import AGENT_CHANNEL, open_hybrid
from drupe.linux.unix_peers import kill_peer

GUEST_CID = 3
_SAVE_TIMEOUT_S = 300.0
_MIB = 1 << 20
_SLOT_MIB = 128  # what hotpluggable memory is a multiple of
_STATES = {"Not started": "starting", "Running": "running", "Paused": "paused"}
_STOPS, _EXITS = "Vmm is stopping", "Firecracker exiting"  # words of its log
_LAST_WORD_S, _LOOK_S = 2.0, 0.02
_STATE_FILE, _MEMORY_FILE = "state", "memory"
_NO_DEVICES = "no: adding devices to a running machine is a developer preview that the guest is not told of"


class Firecracker(Hypervisor):
    """program: its name or path (a path when there is a jail)."""

    name: ClassVar[str] = "firecracker"
    abilities: ClassVar[Mapping[str, str]] = said({
        "clone": "limited: in a jail, or from version 1.16 on, as what is saved names the agent's socket",
        "hotplug-disk": _NO_DEVICES,
        "hotplug-nic": _NO_DEVICES,
        "hotplug-share": "no: it has no shared directories",
        "hotplug-vfio": "no: it takes no host devices",
        "resize-processors": "no: their number is fixed",
        "resize-memory": "limited: grows from version 1.14 on; below its first size the balloon takes memory",
        "virtiofs": "no: it has no shared directories",
        "9p": "no: it has no shared directories",
        "vhost-user": "limited: disks, not interfaces",
        "serial": "no: the agent is reached over hybrid vsock",
        "multiqueue": "no: an interface has one queue",
    })  # fmt: skip
    resets_to_end: ClassVar[bool] = True

    def __init__(self, program: str = "firecracker", jail: Jail | None = None) -> None:
        self._program, self._jail = program, jail

    @property
    def jailed(self) -> bool:
        """Whether it has no other rights than those of a user of its own, in a root of its own."""
        return self._jail is not None

    def root(self, config: MachineConfig) -> Path:
        """Where its paths begin, for us."""
        if self._jail is None:
            return config.dir
        # The jailer names the place by where the program really is.
        return (self._jail.base or config.dir) / Path(self._program).resolve().name / self._name(config) / "root"

    def _name(self, config: MachineConfig) -> str:
        return name_in_jail(config.id) if self._jail and self._jail.base else "m"

    def owner(self, machine_id: str) -> int:
        return 0 if self._jail is None else self._jail.uid or uid_of(machine_id)

    def leaves(self, config: MachineConfig) -> Sequence[Path]:
        return [self.root(config).parent] if self._jail and self._jail.base else []

    def serial(self, disk: Disk, config: MachineConfig) -> str:
        """What the guest sees as the serial of a disk: where its file is (st_dev, st_rdev, st_ino). In a jail that is a
        copy, where it could not be linked, or a device node."""
        jailed = self.root(config) / identifier(disk.id)
        found = (jailed if self._jail and jailed.exists() else disk.path).stat()
        return f"{found.st_dev}{found.st_rdev}{found.st_ino}"[:20]

    def prepare(self, config: MachineConfig) -> Launch:
        refuse(config)
        root = self.root(config)
        return Launch(
            argv=self._argv(config),
            control=root / "api.sock",
            agent=root / "vsock.sock",
            devices=["/dev/kvm", *(["/dev/net/tun"] if config.nics else [])],
            dirs=[self._jail.base] if self._jail and self._jail.base else [],
        )

    def _argv(self, config: MachineConfig) -> list[str]:
        if self._jail is None:
            return [self._program, "--id", "m", "--api-sock", str(config.dir / "api.sock")]
        jail, base = self._jail_of(config), self._jail.base or config.dir
        words = ["--id", self._name(config), "--exec-file", self._program]
        words += ["--uid", str(jail.uid), "--gid", str(jail.gid)]
        words += ["--chroot-base-dir", str(base), *(["--netns", jail.netns] if jail.netns else [])]
        return [jail.program, *words, "--", "--api-sock", "/api.sock"]

    def _jail_of(self, config: MachineConfig) -> Jail:
        """With the machine's own user."""
        assert self._jail is not None  # noqa: S101 - the caller has looked
        uid = self.owner(config.id)
        return replace(self._jail, uid=uid, gid=self._jail.gid or uid)

    async def open_line(self, config: MachineConfig) -> Line:
        return await open_hybrid(self.root(config) / "vsock.sock")

    async def connect(self, config: MachineConfig, *, timeout_s: float) -> Machine:
        rest = Rest(self.root(config) / "api.sock", "firecracker")
        lifeline = await connected(rest, timeout_s=timeout_s)
        place = Place(self.root(config), self._jail_of(config) if self._jail else None)
        return FirecrackerMachine(rest, config, lifeline, place)


def refuse(config: MachineConfig) -> None:
    """Raises Unsupported for what the program cannot do."""
    for refused, what, feature in (
        (config.accelerator != "kvm", "needs KVM", "accelerator"),
        (bool(config.shares), "has no shared directories", "virtiofs"),
        (bool(config.host_devices), "takes no host devices", "hotplug-vfio"),
        (any(nic.queues > 1 for nic in config.nics), "has one queue for an interface", "multiqueue"),
        (any(not nic.tap for nic in config.nics), "opens its taps by name", "vhost-user"),
        (any(disk.format != "raw" for disk in config.disks), "takes raw disks only", "disk format"),
        (config.processors_max > config.processors, "cannot change the number of processors", "resize-processors"),
    ):
        if refused:
            raise Unsupported(f"Firecracker {what}", feature=feature)


def identifier(text: str) -> str:
    """Firecracker's ids have letters, digits and underscores."""
    return re.sub(r"\W", "_", text, flags=re.ASCII)


class FirecrackerMachine(RestMachine):
    """See the contract."""

    def __init__(self, rest: Rest, config: MachineConfig, lifeline: Lifeline, place: Place) -> None:
        super().__init__(rest, config, lifeline)
        self._place = place
        self._versions: tuple[int, ...] | None = None

    async def _version(self) -> tuple[int, ...]:
        """(1, 14, 0); for what not all have."""
        if self._versions is None:
            told = await self._rest.call("GET", "/version")
            found = re.match(r"(\d+)\.(\d+)", str(told["firecracker_version"]).removeprefix("v"))
            self._versions = tuple(map(int, found.groups())) if found else (0, 0)
        return self._versions

    @property
    def _room_bytes(self) -> int:
        return max(self._config.memory_max_bytes - self._config.memory_bytes, 0)

    # ── life ──

    async def boot(self, *, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        await self._put("/logger", {"log_path": self._place.make("log"), "level": "Info"})
        await self._put("/metrics", {"metrics_path": self._place.make("metrics")})
        if self._config.saved is not None:
            await self._load(self._config.saved, timeout_s)
            return
        try:
            await self._configure()
            action = {"action_type": "InstanceStart"}
            await self._put("/actions", action, timeout_s=max(deadline - time.monotonic(), 0.001))
        finally:
            self._place.settle()

    async def _configure(self) -> None:
        config = self._config
        modern = await self._version() >= (1, 14)
        if self._room_bytes and not modern:
            raise Unsupported("memory grows from Firecracker 1.14 on", feature="resize-memory")
        await self._put(
            "/machine-config", {"vcpu_count": config.processors, "mem_size_mib": config.memory_bytes // _MIB}
        )
        await self._put("/boot-source", self._boot_source())
        for disk in config.disks:
            await self._put(f"/drives/{identifier(disk.id)}", self._drive(disk))
        for nic in config.nics:
            await self._put(f"/network-interfaces/{identifier(nic.id)}", nic_body(nic))
        await self._put("/vsock", {"guest_cid": GUEST_CID, "uds_path": self._place.own("vsock.sock")})
        reporting = {"free_page_reporting": True} if modern else {}
        await self._put("/balloon", {"amount_mib": 0, "deflate_on_oom": True, **reporting})
        await self._put("/entropy", {})
        if self._room_bytes:
            total = -(-self._room_bytes // (_SLOT_MIB * _MIB)) * _SLOT_MIB
            await self._put("/hotplug/memory", {"total_size_mib": total})

    def _boot_source(self) -> dict[str, str]:
        words = ["console=ttyS0", "reboot=k", "panic=-1", "quiet", AGENT_CHANNEL, *self._config.append]
        body = {"kernel_image_path": self._place.given("kernel", self._config.kernel), "boot_args": " ".join(words)}
        initrd = self._config.initrd
        return body | ({"initrd_path": self._place.given("initrd", initrd)} if initrd else {})

    def _drive(self, disk: Disk) -> dict[str, Any]:
        name = identifier(disk.id)
        body: dict[str, Any] = {"drive_id": name, "is_root_device": False}
        if disk.socket is not None:
            return body | {"socket": self._place.given(name, disk.socket)}
        path = self._place.given(name, disk.path, read_only=disk.read_only)
        return body | {"path_on_host": path, "is_read_only": disk.read_only, "cache_type": "Writeback"}

    async def _load(self, directory: Path, timeout_s: float) -> None:
        """The saved devices are opened by the names that they had, then ours take their places."""
        state, memory = (self._place.given(name, directory / name) for name in (_STATE_FILE, _MEMORY_FILE))
        body: dict[str, Any] = {
            "snapshot_path": state,
            "mem_backend": {"backend_type": "File", "backend_path": memory},
            "resume_vm": False,
        }
        if nics := self._config.nics:
            body["network_overrides"] = [{"iface_id": identifier(n.id), "host_dev_name": n.tap} for n in nics]
        if not self._place.jail and await self._version() >= (1, 16):
            body["vsock_override"] = {"uds_path": self._place.own("vsock.sock")}
        paths = {
            disk.id: self._place.given(identifier(disk.id), disk.path, read_only=disk.read_only)
            for disk in self._config.disks
        }
        await self._put("/snapshot/load", body, timeout_s=timeout_s)
        for disk_id, path in paths.items():
            name = identifier(disk_id)
            await self._rest.call("PATCH", f"/drives/{name}", {"drive_id": name, "path_on_host": path})
        await self.resume()

    async def _put(self, path: str, body: Mapping[str, Any], *, timeout_s: float = ANSWERS_WITHIN_S) -> None:
        await self._rest.call("PUT", path, body, timeout_s=timeout_s)

    async def status(self) -> MachineStatus:
        told = await self._rest.call("GET", "/")
        size = await self._rest.call("GET", "/machine-config")
        memory = int(size["mem_size_mib"])
        if self._room_bytes:
            with contextlib.suppress(HelperFailed):
                memory += int((await self._rest.call("GET", "/hotplug/memory"))["plugged_size_mib"])
        state: Any = _STATES.get(told["state"], "stopped")
        return MachineStatus(state, int(size["vcpu_count"]), memory * _MIB, str(told["state"]))

    async def _await_end(self) -> str:
        """It hangs up before it has written its last word."""
        await self._lifeline.ended()
        deadline = time.monotonic() + _LAST_WORD_S
        while _STOPS in (said := self._said()) and _EXITS not in said and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        return self._why()

    def _said(self) -> str:
        with contextlib.suppress(OSError):
            return self._place.read("log")
        return ""

    def _why(self) -> str:
        """A guest's reset ends the program, with a word in its log; it has no other way to end it."""
        return "shutdown" if f"{_EXITS} successfully" in self._said() else "killed"

    async def pause(self) -> None:
        await self._rest.call("PATCH", "/vm", {"state": "Paused"})

    async def resume(self) -> None:
        await self._rest.call("PATCH", "/vm", {"state": "Resumed"})

    async def save(self, directory: Path) -> None:
        names = {"snapshot_path": _STATE_FILE, "mem_file_path": _MEMORY_FILE}
        own = directory if not self._place.jail else self._place.root
        paths = {field: self._place.own(name) if self._place.jail else str(own / name) for field, name in names.items()}
        await self._put("/snapshot/create", {"snapshot_type": "Full", **paths}, timeout_s=_SAVE_TIMEOUT_S)
        for name in names.values() if self._place.jail else ():
            self._place.take(name, directory / name)

    # ── devices and size ──

    async def add(self, device: Device) -> None:
        raise Unsupported("Firecracker takes no devices while a machine runs", feature="hotplug")

    async def remove(self, device_id: str, *, timeout_s: float) -> None:
        raise Unsupported("Firecracker's devices stay until its machine ends", feature="hotplug")

    async def resize(self, *, processors: int | None = None, memory_bytes: int | None = None) -> MachineStatus:
        if processors is not None and processors != self._config.processors:
            raise Unsupported("Firecracker cannot change the number of processors", feature="resize-processors")
        if memory_bytes is not None:
            base, most = self._config.memory_bytes, self._config.memory_bytes + self._room_bytes
            if memory_bytes > most:
                raise ResourceExhausted(f"the machine was made for at most {most} bytes of memory")
            if self._room_bytes:
                more = max(memory_bytes - base, 0) // _MIB
                await self._rest.call("PATCH", "/hotplug/memory", {"requested_size_mib": more})
            await self._rest.call("PATCH", "/balloon", {"amount_mib": max(base - memory_bytes, 0) // _MIB})
        return await self.status()

    async def metrics(self) -> Mapping[str, float]:
        await self._put("/actions", {"action_type": "FlushMetrics"})
        lines = self._place.read("metrics").splitlines()
        with contextlib.suppress(ValueError, RecursionError):
            return dict(_numbers(json.loads(lines[-1]))) if lines else {}
        return {}

    async def quit(self, *, timeout_s: float) -> None:
        """Its API has no word for it: the process at the other end of its socket is killed."""
        jail = self._place.jail
        kill_peer(self._place.root / "api.sock", uid=jail.uid if jail else None)
        await self._gone_within(timeout_s)


def nic_body(nic: Nic) -> dict[str, str]:
    """The MTU is the agent's to set: only new versions know the word."""
    return {"iface_id": identifier(nic.id), "host_dev_name": nic.tap, "guest_mac": nic.mac}


def _numbers(found: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of nested objects, by joined names."""
    numbers: list[tuple[str, float]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            numbers += _numbers(value, f"{prefix}{name}_")
        elif isinstance(value, int | float):
            numbers.append((prefix + name, float(value)))
    return numbers

"""The Hypervisor contract: what every program that runs virtual machines offers to the vm sandboxer.

A driver (`Hypervisor`) knows one program; `prepare` turns a `MachineConfig` into the programs to start, as argv and
files, and the caller starts them (by the keeper, in the pod's cgroup and namespaces, without rights); `connect` gives
the `Machine`, over which everything else goes. So a machine that outlived its daemon is connected again.

Rules: what a program cannot do stands in `abilities` and is refused with `Unsupported` before anything is asked of it.
Calls have deadlines and raise drupe.errors only. Removing what is not there, and stopping twice, is no error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from drupe.errors import Unsupported
from drupe.hypervisors.lines import Line, open_socket

Accelerator = Literal["kvm", "tcg", "native"]

_SERIAL_BYTES = 20  # of a virtio disk
SPARE_DISK_BYTES = 1 << 40  # what a guest has learned it does not ask again: none that takes the place is larger
KILLED = "killed"  # the end of a machine whose monitor said nothing of it

ABILITIES: dict[str, str] = {
    "pause": "pause and resume a machine",
    "save": "write a machine's memory and devices to files, and start from them",
    "clone": "start many machines from one saved one, sharing its memory copy-on-write",
    "hotplug-disk": "add and remove disks",
    "hotplug-nic": "add and remove network interfaces",
    "hotplug-share": "add and remove shared directories",
    "hotplug-vfio": "add and remove host devices",
    "resize-processors": "change the number of processors",
    "resize-memory": "change the size of memory",
    "balloon": "give unused memory back to the host",
    "virtiofs": "share directories by virtio-fs",
    "9p": "share directories by 9p",
    "vhost-user": "take disks and interfaces from vhost-user processes",
    "vsock": "reach the agent over hybrid vsock",
    "serial": "reach the agent over a virtio serial port",
    "multiqueue": "several queues for a network interface",
}


def said(words: Mapping[str, str]) -> Mapping[str, str]:
    """A table of abilities: "yes" but for what `words` says."""
    if unknown := words.keys() - ABILITIES.keys():
        raise ValueError(f"no such ability: {', '.join(sorted(unknown))}")
    return {word: words.get(word, "yes") for word in ABILITIES}


@dataclass(frozen=True, slots=True)
class Disk:
    """id: the virtio serial, at most 20 bytes, by which the guest finds it. direct: past the host's page cache."""

    id: str
    path: Path
    read_only: bool = False
    format: Literal["raw", "qcow2"] = "raw"
    direct: bool = False
    socket: Path | None = None  # of a vhost-user-blk process instead of `path`


@dataclass(frozen=True, slots=True)
class Nic:
    """tap: name of the device in the VMM's network namespace. queues: pairs. socket: vhost-user instead of `tap`.
    descriptor: of an open tap, for one that is plugged into a running machine (whoever plugs it in closes it); more:
    of its further queues. node: of a macvtap, whose descriptors are those of this character device."""

    id: str
    mac: str
    tap: str = ""
    mtu: int = 1500
    queues: int = 1
    socket: Path | None = None
    descriptor: int = -1
    more: tuple[int, ...] = ()
    node: Path | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """A directory of the host for the guest. tag: its name inside. socket: virtiofsd's; None: the VMM serves 9p."""

    id: str
    tag: str
    path: Path
    socket: Path | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A PCI device bound to vfio-pci. address: "0000:3b:00.1"."""

    id: str
    address: str


Device = Disk | Nic | Share | HostDevice


@dataclass(frozen=True, slots=True)
class SavedCode:
    """Instructions of the guest's kernel in a saved machine's memory, from `begin` to `end` (bytes from its begin).
    memory: the descriptor by which the program has that memory."""

    begin: int
    end: int
    memory: int


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """One machine. dir: private run directory, where sockets, pid and console go (socket paths stay below 108 bytes).
    kernel, initrd: files of the guest. append: further words of the kernel's command line. memory_max_bytes,
    processors_max: up to where it may grow later. saved: start from what `Machine.save` wrote there instead of booting;
    share_memory: copy-on-write from it. memory_file: memory is this file (exists, of that size) and not anonymous, so
    that `Machine.save` need not write it. places: where devices sit, as `Machine.places` told it of the saved one.
    spare_disks: how many places for disks a machine has from its start that may hold none yet: the first of `disks`
    sit there, and one that goes on from it may have others in them. A guest takes each for a disk of SPARE_DISK_BYTES,
    provided that those of the first machine are of that size. trim: a plugin by which an emulator gives back what it
    keeps for a machine that has become quiet, and has `code` from the saved machine: memory_file is empty there."""

    id: str
    dir: Path
    kernel: Path
    initrd: Path | None
    append: Sequence[str] = ()
    processors: int = 1
    processors_max: int = 1
    memory_bytes: int = 256 << 20
    memory_max_bytes: int = 256 << 20
    accelerator: Accelerator = "tcg"
    machine_type: str = ""  # the driver's default when empty
    disks: Sequence[Disk] = ()
    nics: Sequence[Nic] = ()
    shares: Sequence[Share] = ()
    host_devices: Sequence[HostDevice] = ()
    shared_memory: bool = False  # vhost-user back-ends map it
    saved: Path | None = None
    share_memory: bool = False
    memory_file: Path | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    spare_disks: int = 0
    trim: Path | None = None
    code: SavedCode | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start for a machine. files: written before, below its `dir`, mode 0600. control, agent: sockets below
    `dir`, made by the program when it is ready, unless they are among `listeners`: those are made and listened at by
    whoever starts it, and handed on as descriptors 3, 4, … in this order, so that nobody has to wait for them.
    fifos: made by whoever starts it and opened for both ends, handed on as descriptors after the listeners.
    console: where the guest's console is written; its standard output when that is empty. empty: a directory that must
    be there, with nothing in it. dirs: that must be there, for nobody but us. cwd: to be started in, where given."""

    argv: Sequence[str]
    files: Mapping[Path, bytes] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    control: Path = Path()
    agent: Path = Path()
    console: Path = Path()
    listeners: Sequence[Path] = ()
    fifos: Sequence[Path] = ()
    empty: Path | None = None
    cwd: Path | None = None
    dirs: Sequence[Path] = ()
    devices: Sequence[str] = ()  # host device nodes it opens: /dev/kvm, /dev/net/tun, …


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """What the VMM says of its machine."""

    state: Literal["starting", "running", "paused", "stopped", "panicked"]
    processors: int
    memory_bytes: int
    detail: str = ""


class Machine(ABC):
    """A machine whose VMM runs, over the VMM's own control channel."""

    @abstractmethod
    async def boot(self, *, timeout_s: float) -> None:
        """Let it run. Programs that take their configuration over the channel are given it here."""

    @abstractmethod
    async def status(self) -> MachineStatus: ...

    @abstractmethod
    async def wait(self) -> str:
        """Wait for the machine's end; answers why: "shutdown", "panic", "reset", "killed", …"""

    @abstractmethod
    async def pause(self) -> None: ...

    @abstractmethod
    async def resume(self) -> None: ...

    @abstractmethod
    async def save(self, directory: Path) -> None:
        """Write memory and devices of a paused machine to `directory` (exists, empty). It stays paused."""

    async def places(self) -> Mapping[str, str]:
        """Where devices sit, by their ids, in the driver's own words; empty where they have no places."""
        return {}

    @abstractmethod
    async def add(self, device: Device) -> None:
        """Plug a device in; the guest may need a moment to see it (Guest.AwaitDevice)."""

    @abstractmethod
    async def remove(self, device_id: str, *, timeout_s: float) -> None:
        """Unplug, and wait until the guest has let go. DeadlineExceeded when it does not."""

    @property
    def keeps_places(self) -> bool:
        """Whether it can `withdraw` devices."""
        return False

    async def withdraw(self, device_id: str) -> None:
        """Take a device away that no driver of the guest has any more, without the guest's being told: one that is
        plugged in later in the same place is the same to it. Unsupported where a program cannot."""
        raise Unsupported("devices are not withdrawn from such a machine", feature="withdraw")

    @abstractmethod
    async def resize(self, *, processors: int | None = None, memory_bytes: int | None = None) -> MachineStatus:
        """Ask for another size; answers what is reached. The guest's part is Guest.SetOnline."""

    @abstractmethod
    async def metrics(self) -> Mapping[str, float]:
        """Numbers of the VMM's own, name to value with its unit in the name."""

    @abstractmethod
    async def quit(self, *, timeout_s: float) -> None:
        """End the VMM at once. Idempotent."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the channel; the machine goes on."""


class Hypervisor(ABC):
    """One program that runs machines."""

    name: ClassVar[str]
    abilities: ClassVar[Mapping[str, str]]  # a word of ABILITIES to "yes", "no: reason" or "limited: reason"
    resets_to_end: ClassVar[bool] = False  # it has no power to be switched off: a guest that resets it ends it
    opens_taps: ClassVar[bool] = True  # by name, without a capability; else `Nic.descriptor` is there when it boots

    def abilities_of(self, machine_type: str) -> Mapping[str, str]:
        """What it can do with machines of one type; "" is its default, whose answers are `abilities`."""
        return self.abilities

    @abstractmethod
    def prepare(self, config: MachineConfig) -> Launch:
        """The program to start for `config`. Pure: touches nothing. Unsupported for what the program cannot do."""

    def owner(self, machine_id: str) -> int:
        """The user id under which it opens taps; 0 for a program that is root then."""
        return 0

    def furnish(self, config: MachineConfig) -> None:  # noqa: B027
        """Put what the program opens as it starts where it finds it. Raises InvalidArgument. Before it is started."""

    def share_socket(self, config: MachineConfig) -> Path:
        """Where the socket of the process that shares a directory with it is to be made; the program's user has it."""
        return config.dir / "virtiofs.sock"

    def leaves(self, config: MachineConfig) -> Sequence[Path]:
        """Directories that a program makes elsewhere than in `config.dir`: to be removed when it has ended."""
        return ()

    def serial(self, disk: Disk, config: MachineConfig) -> str:
        """What the guest of a machine that runs sees as the serial of a disk."""
        return disk.id[:_SERIAL_BYTES]

    async def open_line(self, config: MachineConfig) -> Line:
        """A connection to the port or line of the guest's agent, which may be booting still. Raises OSError."""
        return await open_socket(config.dir / "agent.sock")

    @abstractmethod
    async def connect(self, config: MachineConfig, *, timeout_s: float) -> Machine:
        """The machine of a VMM that was started from `prepare(config)`, now or long ago."""

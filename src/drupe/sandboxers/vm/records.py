"""What is written down of pods, containers and execs, so that another daemon can go on with them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from drupe.hypervisors.contract import Accelerator, MachineConfig
from drupe.resources.network.endpoints.contract import Model
from drupe.sandboxers.contract import MemoryDir
from drupe.sandboxers.kept.records import Record
from drupe.sandboxers.vm.roots import RootDisk, RootOf
from drupe.spec.container import LogSpec
from drupe.spec.resources import Resources
from drupe.spec.status import ExitStatus

VMM, SHARE = ".vmm", ".virtiofsd"  # suffixes of a pod's tasks of the keeper: no id has a dot


class PodRecord(Record, kw_only=True):
    """A machine. netns: where its interfaces are, "" for none. started: it was, and not stopped. saved: directory of
    the saved machine it started from. failed: why it is lost. phases_ms: of its start. notes: what of its network
    is not as usual; start_notes: what of the rest. nics: id and MAC of each of its interfaces. memory_now,
    processors_now: what it has been given since it started. limits: the pod's own. hypervisor: the program that runs
    it, "" the node's. network, queues,
    vhost_user: how its interfaces are joined (endpoints.contract.Wanted), by a program that is the user `owner`.
    bound: hardware of the host that it has, by PCI address, and what drove it before. told: digest of what the
    guest knows of its interfaces. images: those whose disks it has from its start. disks: that are plugged in.
    spare_disks: see MachineConfig. memory: volumes in memory, and whether the guest has them; mounted: where it
    has, since its start."""

    id: str
    dir: str
    cgroup: str
    hostname: str
    netns: str
    kernel: str
    initrd: str
    append: list[str]
    accelerator: Accelerator
    machine_type: str
    memory_bytes: int
    memory_max_bytes: int
    processors: int
    processors_max: int
    rootfs: str
    share_pid: bool = False
    shm_bytes: int = 64 << 20
    sysctls: dict[str, str] = {}
    started: bool = False
    paused: bool = False
    hypervisor: str = ""
    network: Model = "tc-filter"
    queues: int = 1
    owner: int = 0
    told: str = ""
    bound: list[tuple[str, str]] = []
    vhost_user: str = ""
    saved: str = ""
    failed: str = ""
    notes: list[str] = []
    start_notes: list[str] = []
    nics: list[tuple[str, str]] = []
    memory_now: int = 0
    processors_now: int = 0
    limits: Resources = Resources()
    images: list[str] = []
    disks: list[RootDisk] = []
    spare_disks: int = 0
    memory: dict[str, bool] = {}
    mounted: list[str] = []
    phases_ms: dict[str, float] = {}

    @property
    def home(self) -> Path:
        """Everything of the machine: sockets, share, records."""
        return Path(self.dir) / "vm"

    @property
    def path(self) -> Path:
        return self.home / "pod.json"

    @property
    def share(self) -> Path:
        """The directory that the guest sees."""
        return self.home / "share"

    @property
    def shares(self) -> bool:
        """Whether it has a shared directory."""
        return self.rootfs != "block"

    @property
    def leaf(self) -> str:
        """The cgroup of the programs that run the machine."""
        return f"{self.cgroup}/vm"

    def machine(self, **more: Any) -> MachineConfig:
        """As the driver wants it."""
        return MachineConfig(
            id=self.id,
            dir=self.home,
            kernel=Path(self.kernel),
            initrd=Path(self.initrd) if self.initrd else None,
            append=self.append,
            processors=self.processors,
            processors_max=self.processors_max,
            memory_bytes=self.memory_bytes,
            memory_max_bytes=self.memory_max_bytes,
            accelerator=self.accelerator,
            machine_type=self.machine_type,
            shared_memory=self.rootfs == "virtiofs" or bool(self.vhost_user),
            spare_disks=self.spare_disks,
            **more,
        )

    def save(self) -> None:
        self.write(self.path)


class TaskRecord(Record, kw_only=True):
    """A container. guest: its id for the agent. pid: of its first process there, which tells its end from that of an
    earlier start of the same container. made: the agent knows it. exit: its end, once known. root: by block, what it is
    made of; disks: and is, the lowest first. memory: volumes of the guest's memory that it has."""

    id: str
    sandbox: str
    cgroup: str
    bundle: str
    tty: bool
    stdin: bool
    log: LogSpec | None
    exit_file: str
    guest: str
    pid: int = 0
    resources: Resources = Resources()
    made: bool = False
    started: bool = False
    exit: ExitStatus | None = None
    execs: dict[str, int] = {}
    root: RootOf = msgspec.field(default_factory=RootOf)
    disks: list[RootDisk] = []
    memory: list[MemoryDir] = []

    @property
    def path(self) -> Path:
        return record_path(Path(self.bundle))

    def save(self) -> None:
        self.write(self.path)

    def ends_with(self, pid: int) -> bool:
        """Whether the end of that process is its own, and news."""
        return self.exit is None and self.pid in (0, pid)

    def note(self) -> None:
        """Save what a daemon that comes back could do without: a disk that is full keeps nobody from his work."""
        with contextlib.suppress(OSError):
            self.save()


def record_path(bundle: Path) -> Path:
    """Where a container's record is."""
    return bundle / "vm.json"

"""What is written down of pods and containers, so that another daemon can go on with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from drupe.sandboxers.kept.records import Record
from drupe.spec.container import LogSpec
from drupe.spec.status import ExitStatus

KERNEL = ".kernel"  # suffix of the keeper's task that is a pod's kernel: no id has a dot


class PodRecord(Record, kw_only=True):
    """A pod's kernel. cgroup: of the pod. place: of the kernel's things, if it was a spare one; "": they are in the
    pod's own directory. sole: it is made for one container, and runs in its cgroup; only: that
    container, once it is made. netns: where its interfaces are, "" for none. started: it was, and not stopped. failed:
    why it is lost. tasks, memory_bytes: what its containers may have together, 0 for any number and all there is;
    only_memory_bytes: what that container may have. paused: the cgroup that stands still, "" for none. rests: its
    kernel was written down while it was paused, and has to be told to go on."""

    id: str
    dir: str
    cgroup: str
    hostname: str
    place: str = ""
    netns: str = ""
    sole: bool = False
    only: str = ""
    only_cgroup: str = ""
    share_pid: bool = False
    shm_bytes: int = 64 << 20
    sysctls: dict[str, str] = {}
    tasks: int = 0
    memory_bytes: int = 0
    only_memory_bytes: int = 0
    started: bool = False
    failed: str = ""
    paused: str = ""
    rests: bool = False

    @property
    def home(self) -> Path:
        """Where this is written down."""
        return Path(self.dir) / "appkernel"

    @property
    def kernel_home(self) -> Path:
        """Everything of the kernel: socket, log, shared directory."""
        return Path(self.place) if self.place else self.home

    @property
    def path(self) -> Path:
        return self.home / "pod.json"

    @property
    def key(self) -> str:
        """The keeper's name for the kernel."""
        return kernel_key(self.kernel_home if self.place else Path(self.id))

    @property
    def shown_memory_bytes(self) -> int:
        """What programs are to see as their memory; 0: all there is."""
        return min((size for size in (self.memory_bytes, self.only_memory_bytes) if size), default=0)

    @property
    def leaf(self) -> str:
        """The cgroup of the kernel and of all that it runs."""
        return self.only_cgroup or f"{self.cgroup}/kernel"

    def save(self) -> None:
        self.write(self.path)


def kernel_key(place: Path) -> str:
    """The keeper's name for a kernel, by the last part of a path that no other has."""
    return place.name + KERNEL


class TaskRecord(Record, kw_only=True):
    """A container. image: its root, an EROFS file. tasks: how many it may have, 0 for any number. placed: what runs in
    it is in its cgroup, where its memory is limited. time: quota and period in microseconds of one container among
    several, [] for none. paused: it stands still by itself. exit: its end, once known. execs: pids of further processes
    by id. restore: directory of the checkpoint that it starts from. restored: its kernel has it, and it goes on at its
    start."""

    id: str
    sandbox: str
    cgroup: str
    bundle: str
    tty: bool
    stdin: bool
    log: LogSpec | None
    exit_file: str
    image: str = ""
    tasks: int = 0
    placed: bool = False
    time: list[int] = []
    paused: bool = False
    started: bool = False
    restore: str = ""
    restored: bool = False
    exit: ExitStatus | None = None
    execs: dict[str, int] = {}

    @property
    def path(self) -> Path:
        return record_path(Path(self.bundle))

    def save(self) -> None:
        self.write(self.path)

    def oci(self) -> dict[str, Any]:
        """Its config.json. OSError, or msgspec.DecodeError for one that is damaged."""
        config: dict[str, Any] = msgspec.json.decode((Path(self.bundle) / "config.json").read_bytes())
        return config


def record_path(bundle: Path) -> Path:
    """Where a container's record is."""
    return bundle / "appkernel.json"

"""What is written down of pods and containers, so that another daemon can go on with them."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from drupe.sandboxers.kept.records import Record
from drupe.spec.container import LogSpec
from drupe.spec.status import ExitStatus

ROOT_ID = "s"  # how runsc calls the first container of a sandbox: short, as its socket is named by it


class PodRecord(Record, kw_only=True):
    """A sandbox. state: runsc's own directory for it. logs: where sentry and gofers write theirs. sole: it is made with
    its one container, and ends with it; otherwise a process that does nothing is its first. network, platform: of
    runsc. shm_bytes: size of /dev/shm. netns: where its addresses are, "" for none. joins: others have it, too. debug:
    log much. seccomp: load the containers' filters. paused: the sentry, too, keeps its guest from running."""

    id: str
    dir: str
    cgroup: str
    state: str
    sole: bool
    network: str
    platform: str
    hostname: str = ""
    shm_bytes: int = 64 << 20
    netns: str = ""
    joins: bool = False
    debug: bool = False
    seccomp: bool = False
    paused: bool = False

    @property
    def socket(self) -> Path:
        return Path(self.state) / f"runsc-{ROOT_ID}.sock"

    @property
    def logs(self) -> Path:
        return Path(self.dir) / "gvisor-logs"

    @property
    def key(self) -> str:
        """The keeper's name for a sandbox that is not its container's."""
        return f"{self.id}.sandbox"

    def leaf(self, container_cgroup: str) -> str:
        """The cgroup that holds sentry and gofers: that of the only container, or one for all of them."""
        return container_cgroup if self.sole else f"{self.cgroup}/sandbox"


class TaskRecord(Record, kw_only=True):
    """A container. guest: its id for runsc. gofer: pid of the process that serves its files. exit: its end, once known.
    restore: directory of the checkpoint that it starts from. pid_space: what its process table is called."""

    id: str
    sandbox: str
    cgroup: str
    bundle: str
    tty: bool
    stdin: bool
    log: LogSpec | None
    exit_file: str
    guest: str
    started: bool = False
    gofer: int = 0
    exit: ExitStatus | None = None
    restore: str = ""
    pid_space: str = ""

    @property
    def path(self) -> Path:
        return record_path(Path(self.bundle))

    def save(self) -> None:
        self.write(self.path)


def record_path(bundle: Path) -> Path:
    """Where a container's record is."""
    return bundle / "gvisor.json"


def gofer_of(state: Path, guest: str) -> int:
    """The pid of a container's gofer, from runsc's state file; 0 when it says none."""
    try:
        found = msgspec.json.decode((state / f"{guest}_sandbox:{ROOT_ID}.state").read_bytes())
        return int(found.get("goferPid", 0))
    except (OSError, ValueError, AttributeError):
        return 0


def forget_guest(state: Path, guest: str) -> None:
    """Remove what runsc wrote of a container that is gone."""
    for suffix in ("state", "lock"):
        (state / f"{guest}_sandbox:{ROOT_ID}.{suffix}").unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process is there."""
    return pid > 0 and os.path.exists(f"/proc/{pid}")  # noqa: PTH110 - one stat

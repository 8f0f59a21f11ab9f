"""What a daemon without pods must not have left: seen from outside, by looking at the host itself."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from framework.daemon import Daemon
from framework.leaks import SPARE, mounts

SETTLES_WITHIN_S = 10.0
ZYGOTE = "drupe-zygote"


def residue(daemon: Daemon) -> dict[str, list[str]]:
    """Kind of thing to what is there though no pod is. Empty when all is well."""
    found = {
        "children of the keeper": settled(lambda: working(daemon.keeper_pid)),
        "kernels": settled(lambda: lost_kernels(daemon)),
        "cgroups": cgroups_of(daemon),
        "mounts": pod_mounts(daemon),
        "pod directories": names(daemon.run / "pods"),
        "layers": names(daemon.root / "containers"),
        "states of crun": names(daemon.run / "oci"),
        "network namespaces": names(daemon.run / "netns"),
        "interfaces": interfaces(daemon),
        "journal rows": journal_rows(daemon),
    }
    return {kind: what for kind, what in found.items() if what}


def working(keeper: int) -> list[str]:
    """Its children but for those that wait for a pod and are the daemon's own: spare kernels, zygotes of modules."""
    return [one for one in children(keeper) if not one.endswith((SPARE, ZYGOTE))]


def children(pid: int) -> list[str]:
    """Processes whose parent is `pid`: whatever the keeper still keeps."""
    if not pid:
        return []
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [f"{child} {comm(child)}" for child in listed]


def settled(look: Callable[[], list[str]]) -> list[str]:
    """What stays: a kernel that is to wait takes a moment until it does, and one that ends until it has."""
    deadline = time.monotonic() + SETTLES_WITHIN_S
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def lost_kernels(daemon: Daemon) -> list[str]:
    """Directories of spare application kernels which none that waits is in, nor is about to be."""
    homes = set(names(daemon.run / "appkernel"))
    return sorted(homes - {home for home in homes if is_spare(daemon.run / "appkernel" / home)})


def is_spare(home: Path) -> bool:
    """Whether a kernel waits there for a pod; one that does not yet has no pid."""
    try:
        return comm((home / "kernel.pid").read_text()) == SPARE
    except OSError:
        return True


def comm(pid: str | int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "(gone)"


def cgroups_of(daemon: Daemon) -> list[str]:
    """Cgroups below the daemon's own, in every hierarchy."""
    name = daemon.cgroup.lstrip("/")
    tops = [Path("/sys/fs/cgroup"), *(p for p in Path("/sys/fs/cgroup").iterdir() if p.is_dir())]
    return [str(path) for top in tops for path in (top / name).glob("*") if path.is_dir()]


def pod_mounts(daemon: Daemon) -> list[str]:
    """Mounts below the pods' directory, in the keeper's mount namespace and in this one."""
    pids = [str(daemon.keeper_pid), "self"] if daemon.keeper_pid else ["self"]
    return [f"{pid}: {m}" for pid in pids for m in mounts(pid) if m.startswith(str(daemon.run / "pods") + "/")]


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []


def interfaces(daemon: Daemon) -> list[str]:
    """Interfaces of the daemon's network namespace that belong to a pod. A bridge is the network's own."""
    lines = daemon.on_host("ip", "-o", "link").stdout.splitlines()
    found = [line.split(":")[1].strip() for line in lines]
    return [name for name in found if name != "lo" and "@" in name]


def journal_rows(daemon: Daemon) -> list[str]:
    with closing(sqlite3.connect(f"file:{daemon.root / 'journal.db'}?mode=ro", uri=True)) as db:
        return [f"{kind} {id_} {state} {phase}" for kind, id_, state, phase in
                db.execute("SELECT kind, id, state, phase FROM objects")]  # fmt: skip


def rss_kib(pid: int) -> int:
    """Resident memory of a process (proc_pid_status(5), VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def is_alive(pid: int) -> bool:
    """Whether it runs: a zombie whose parent does not care is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return pid > 0 and stat.rpartition(")")[2].split()[0] != "Z"

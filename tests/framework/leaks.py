"""What a test left behind on the host: processes, mounts, cgroups, network namespaces, interfaces, open files.

A snapshot is taken before and after each root test; what is new must be gone within `SETTLE_S`. "Ours" is decided by an
environment mark that every process started from the tests inherits, by the tests' own directory, and by cgroup names.
With CI=true no other drupe works on the machine, so every new mount, interface and cgroup of a drupe counts, whoever
made it.
"""

from __future__ import annotations

import gc
import io
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

MARK_NAME = "DRUPE_TEST_MARK"
MARK = os.environ.setdefault(MARK_NAME, uuid.uuid4().hex)
CGROUP_PARENT = f"drupe-test-{os.getpid()}"
SETTLE_S = 3.0
STRICT = os.environ.get("CI") == "true"
# the lanes of one run share the trees of cgroups, and nothing else that counts
ALONE = "DRUPE_TEST_LANES" not in os.environ

# file descriptors that the interpreter and its libraries open once and keep
FD_CACHES = ("/dev/urandom", "/dev/null", ".mypy_cache", ".hypothesis", "/site-packages/", "anon_inode:[eventpoll]")


# the parent cgroup of each daemon of the tests
daemon_cgroups: set[str] = set()

# a runtime's parent cgroup stays for the next daemon, as `/docker` does; what is below it counts
RUNTIME_PARENT = re.compile(r"/sys/fs/cgroup/(\w+/)?drupe-[0-9a-f]{8}$")

# what a kind has ready for the next pod belongs to the daemon, not to a test: namespaces of the wasm kind, the
# directory of a spare application kernel, and its processes by their name
MADE_AHEAD = re.compile(r"/wasm/ns/|/appkernel/[0-9a-f]{16}/share ")
SPARE = "drupe-spare"


@dataclass(frozen=True)
class Snapshot:
    """Each field is a set of readable descriptions; a leak is a description that was not there before."""

    processes: frozenset[str]
    mounts: frozenset[str]
    keeper_mounts: frozenset[str]
    cgroups: frozenset[str]
    netns: frozenset[str]
    interfaces: frozenset[str]
    files: frozenset[str]


def snapshot(directory: Path) -> Snapshot:
    """What is there now. directory: where the tests keep their files; whatever mentions it is theirs."""
    pids = frozenset(our_processes(directory))
    return Snapshot(
        processes=frozenset(describe_process(pid) for pid in pids),
        mounts=frozenset(m for m in mounts("self") if STRICT or is_ours(m, directory)),
        keeper_mounts=frozenset(private_mounts(pids)),
        cgroups=frozenset(c for c in cgroups() if (STRICT and ALONE and "drupe" in c) or is_our_cgroup(c))
        | frozenset(private_cgroups(pids))
        | frozenset(delegated_controllers()),
        netns=frozenset(named_netns()) if STRICT else frozenset(n for n in named_netns() if "drupe-test" in n),
        interfaces=frozenset(name for _, name in socket.if_nameindex()),
        files=frozenset(open_files()),
    )


def leaks(before: Snapshot, directory: Path) -> dict[str, list[str]]:
    """What is new since `before` and does not go away by itself within SETTLE_S: kind to descriptions."""
    deadline = time.monotonic() + SETTLE_S
    while found := difference(before, snapshot(directory)):
        if time.monotonic() > deadline:
            break
        gc.collect()
        time.sleep(0.02)
    return found


def difference(before: Snapshot, after: Snapshot) -> dict[str, list[str]]:
    """Kind to what `after` has and `before` had not."""
    new = {f.name: sorted(getattr(after, f.name) - getattr(before, f.name)) for f in fields(Snapshot)}
    return {kind: found for kind, found in new.items() if found}


def our_processes(directory: Path) -> Iterator[int]:
    """Processes that carry the mark, run from the tests' directory, or sit in one of the tests' cgroups."""
    for pid in (entry.name for entry in Path("/proc").iterdir()):
        if pid.isdigit() and int(pid) != os.getpid() and _is_our_process(pid, str(directory)):
            yield int(pid)


def _is_our_process(pid: str, directory: str) -> bool:
    """Twice for each test and for each process that there is: what costs a read is looked at last."""
    cgroup = _read(f"/proc/{pid}/cgroup")
    if not _link(f"/proc/{pid}/exe"):  # a thread of the host's kernel, or what has ended
        return CGROUP_PARENT in cgroup and _read(f"/proc/{pid}/comm").strip() != SPARE
    command = _read(f"/proc/{pid}/cmdline")
    if _waits_for_a_pod(pid, command, cgroup):
        return False
    if f"{MARK_NAME}={MARK}\0" in _read(f"/proc/{pid}/environ") + "\0":
        return not _is_zombie(pid)
    return mentions(command, directory) or CGROUP_PARENT in cgroup or mentions(_link(f"/proc/{pid}/cwd"), directory)


def _waits_for_a_pod(pid: str, command: str, cgroup: str) -> bool:
    """Whether it is a spare kernel, or about to be one: none is in a pod's cgroup."""
    if "\0--claim\0" in command and not any(f"{one}/" in cgroup for one in daemon_cgroups):
        return True
    return _read(f"/proc/{pid}/comm").strip() == SPARE


def _is_zombie(pid: str) -> bool:
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] == ["Z"]


def describe_process(pid: int) -> str:
    """`pid command line`, readable for a report."""
    command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    return f"{pid} {command or _read(f'/proc/{pid}/comm').strip()}"


def mounts(pid: str | int) -> list[str]:
    """`mountpoint type source options` of each mount that process `pid` sees (proc_pid_mountinfo(5))."""
    lines = _read(f"/proc/{pid}/mountinfo").splitlines()
    return [f"{left.split()[4]} {right}" for left, _, right in (line.partition(" - ") for line in lines)]


def is_ours(text: str, directory: Path) -> bool:
    """Whether a description mentions the tests' directory or cgroup parent."""
    return mentions(text, directory) or CGROUP_PARENT in text


def mentions(text: str, directory: Path | str) -> bool:
    """Whether a text has the path of a directory: `pytest-12` is not in `pytest-1`, which is of another run."""
    place = str(directory)
    return place in text and re.search(re.escape(place) + r"(?![\w.-])", text) is not None


def private_mounts(pids: frozenset[int]) -> Iterator[str]:
    """Mounts in the private mount namespace of each keeper: overlays live there, out of the host's sight."""
    for pid in pids:
        if "drupe-keeper" in _read(f"/proc/{pid}/comm"):
            yield from (f"keeper {pid}: {mount}" for mount in mounts(pid) if not MADE_AHEAD.search(mount))


def private_cgroups(pids: frozenset[int]) -> Iterator[str]:
    """Directories that crun made where the keeper has unmounted an empty hybrid tree: a plain file system there."""
    for pid in pids:
        hidden = Path(f"/proc/{pid}/root/sys/fs/cgroup/unified")
        if "drupe-keeper" in _read(f"/proc/{pid}/comm") and not (hidden / "cgroup.procs").exists():
            yield from (f"keeper {pid}: {top}" for top, directories, _ in os.walk(hidden) if not directories)


def delegated_controllers() -> Iterator[str]:
    """Controllers that a v2 tree's root hands down: crun refuses a hybrid host where a test left one switched on."""
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if root.name == "cgroup" and (root / "cgroup.controllers").exists():
            continue  # all of cgroups is v2: there it has to
        yield from (f"{root} delegates {name}" for name in _read(f"{root}/cgroup.subtree_control").split())


def cgroups() -> Iterator[str]:
    """Every cgroup directory, of every hierarchy."""
    for top, directories, _ in os.walk("/sys/fs/cgroup"):
        yield from (path for name in directories if not RUNTIME_PARENT.match(path := f"{top}/{name}"))


def is_our_cgroup(path: str) -> bool:
    """Whether a cgroup directory belongs to a test or to a daemon of the tests."""
    return CGROUP_PARENT in path or any(f"{parent}/" in path for parent in daemon_cgroups)


def named_netns() -> list[str]:
    """Network namespaces with a name (ip-netns(8))."""
    home = Path("/run/netns")
    return [entry.name for entry in home.iterdir()] if home.is_dir() else []


def open_files() -> Iterator[str]:
    """`fd target` of each descriptor of this process, without those that libraries keep open on purpose."""
    for name in [entry.name for entry in Path("/proc/self/fd").iterdir()]:
        target = _link(f"/proc/self/fd/{name}")
        if target and not any(kept in target for kept in FD_CACHES) and not target.startswith("/proc/"):
            yield f"{name} {target}"


def wait_until(condition: Callable[[], object], *, what: str, timeout_s: float = 30.0) -> None:
    """Wait until `condition()` is true; AssertionError naming `what` when the time is over."""
    timeout_s *= float(os.environ.get("DRUPE_TEST_PATIENCE", "1"))  # an emulated machine takes many times as long
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def _read(path: str) -> str:
    with suppress(OSError), io.FileIO(path) as file:
        return file.readall().decode("utf-8", "replace")
    return ""


def _link(path: str) -> str:
    with suppress(OSError):
        return os.readlink(path)  # noqa: PTH115 a Path costs more than the call
    return ""

"""The processes of a container as `ps` would show them, from /proc (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import lru_cache

from drupe.resources.cgroups.base import read_text
from drupe.spec import ProcessInfo

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STATES = {"t": "T", "P": "X", "K": "S", "W": "S"}  # rare letters to the ones people know


def list_processes(pids: Iterable[int], *, users: Mapping[int, str] | None = None) -> list[ProcessInfo]:
    """What each process is, by pid; one that ended in between is left out.

    users: uid to name, such as `oci.users.user_names` gives for the image; others are shown by number.
    """
    found = (_process(pid, users or {}) for pid in sorted(set(pids)))
    return [info for info in found if info is not None]


def _process(pid: int, users: Mapping[int, str]) -> ProcessInfo | None:
    try:
        directory = f"/proc/{pid}"
        status = read_text(f"{directory}/status")
        uid = int(_field(status, "Uid")[1])  # the effective one
        stat = read_text(f"{directory}/stat")
        command = _command(directory, stat)
    except (OSError, UnicodeDecodeError, IndexError):
        return None  # it ended while we looked
    # comm may hold spaces and parentheses: what follows the last ")" is regular.
    fields = stat[stat.rindex(")") + 2 :].split()
    return ProcessInfo(
        pid=pid,
        ppid=int(fields[1]),
        uid=uid,
        user=users.get(uid, str(uid)),
        state=_STATES.get(fields[0], fields[0]),
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        rss_bytes=int((_field(status, "VmRSS") or ["0"])[0]) * 1024,
        started_at=_boot_time() + int(fields[19]) / _TICKS_PER_S,
        command=command,
    )


def _field(status: str, name: str) -> list[str]:
    """Words of a line of /proc/PID/status; [] without it.

    Uid from here, since the directory's owner is root for a process that is not dumpable; VmRSS, since the one in
    `stat` is an estimate that is zero for small processes.
    """
    return status.partition(f"\n{name}:")[2].partition("\n")[0].split()


def _command(directory: str, stat: str) -> str:
    fd = os.open(f"{directory}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
    try:
        words = os.read(fd, 4096).rstrip(b"\0").split(b"\0")
    finally:
        os.close(fd)
    text = b" ".join(words).decode("utf-8", "replace")
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    return text or f"[{name}]"  # a zombie has no argv any more


@lru_cache(maxsize=1)
def _boot_time() -> float:
    for line in read_text("/proc/stat").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0

"""Linux capabilities of a workload: names, Docker's default set, and what the host itself holds (capabilities(7))."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from drupe.errors import InvalidArgument, Unsupported

# Position is the number of the capability (linux/capability.h).
ALL: tuple[str, ...] = tuple(
    f"CAP_{name}"
    for name in (  # noqa: SIM905 - a table reads best as words
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
        "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
        "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
        "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
        "PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
_NUMBER = {name: number for number, name in enumerate(ALL)}

DEFAULT: tuple[str, ...] = tuple(
    f"CAP_{name}"
    for name in (  # noqa: SIM905 - as above
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
        "SYS_CHROOT KILL AUDIT_WRITE"
    ).split()
)


def parse_capability(name: str) -> str:
    """The kernel's spelling ("CAP_NET_ADMIN") of a name with or without CAP_, in any case.

    Raises InvalidArgument naming the unknown capability.
    """
    full = name.strip().upper()
    full = full if full.startswith("CAP_") else f"CAP_{full}"
    if full in _NUMBER:
        return full
    near = difflib.get_close_matches(full, ALL, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "see capabilities(7) for the names"
    raise InvalidArgument(f"no capability {name!r}", hint=hint)


def resolve(
    add: Iterable[str] = (), drop: Iterable[str] = (), *, privileged: bool = False, host: frozenset[str]
) -> tuple[str, ...]:
    """Docker's rule: the default set minus `drop` plus `add`; "ALL" in either stands for every one the host has.

    host: what the host itself may give (`host_capabilities`). Raises InvalidArgument for an unknown name, Unsupported
    for one that is asked for by name and that the host lacks.
    """
    added, all_added = _names(add)
    dropped, all_dropped = _names(drop)
    if missing := sorted(added - host):
        raise Unsupported(
            f"this host cannot give capability {', '.join(missing)}",
            hint="drupe itself runs without it; start the daemon with a full bounding set",
        )
    if privileged or all_added:
        granted = (set(host) - dropped) | added
    else:
        granted = (set() if all_dropped else set(DEFAULT) & host - dropped) | added
    return ordered(granted)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """`names` by capability number, so that equal sets are equal tuples."""
    return tuple(sorted(names, key=_NUMBER.__getitem__))


def mask(names: Iterable[str]) -> int:
    """A set of capabilities as the kernel has it: capability n as bit n."""
    return sum(1 << _NUMBER[name] for name in names)


@lru_cache(maxsize=1)
def host_capabilities() -> frozenset[str]:
    """What this process could hand on: the bounding set it was started with (proc(5), CapBnd), read once."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            bits = int(line.split()[1], 16)
            return frozenset(name for name, number in _NUMBER.items() if bits >> number & 1)
    return frozenset()


def _names(given: Iterable[str]) -> tuple[set[str], bool]:
    names = [name.strip().upper() for name in given]
    rest = {parse_capability(name) for name in names if name not in ("ALL", "CAP_ALL")}
    return rest, len([n for n in names if n in ("ALL", "CAP_ALL")]) > 0

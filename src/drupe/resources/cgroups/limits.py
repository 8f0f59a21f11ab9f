"""Resources as asked for, checked and worked out once: what both cgroup versions and the OCI config derive from."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from drupe.errors import InvalidArgument, NotFound
from drupe.spec import IoLimit, Resources

DEFAULT_PERIOD_US = 100_000
MIN_MEMORY_BYTES = 6 << 20  # Docker's floor: below it not even the runtime's own start fits
UNLIMITED = -1
_CPU_LIST = re.compile(r"^\d+(-\d+)?(,\d+(-\d+)?)*$")
_PAGE_SIZE = re.compile(r"^\d+(KB|MB|GB)$")
_RATES = ("read_bps", "write_bps", "read_iops", "write_iops")


@dataclass(frozen=True, kw_only=True)
class IoDevice:
    """Throttles of one block device, by number. rates: "read_bps", "write_bps", "read_iops", "write_iops" to values."""

    major: int
    minor: int
    rates: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Resources in kernel terms. swap_bytes counts memory plus swap, as OCI and cgroup v1 do. -1 is unlimited.

    swap_asked: the caller gave it, so that a host without swap accounting must refuse rather than leave it out.
    """

    quota_us: int | None = None
    period_us: int | None = None
    shares: int | None = None
    cpus: str | None = None
    mems: str | None = None
    memory_bytes: int | None = None
    swap_bytes: int | None = None
    swap_asked: bool = False
    reservation_bytes: int | None = None
    swappiness: int | None = None
    oom_kill_disable: bool | None = None
    pids: int | None = None
    io_weight: int | None = None
    io: tuple[IoDevice, ...] = ()
    hugepages: dict[str, int] = field(default_factory=dict)
    unified: dict[str, str] = field(default_factory=dict)


def limits_of(resources: Resources) -> Limits:
    """Check `resources` and work out quota and swap by Docker's rules (swap unset: twice the memory).

    Raises InvalidArgument naming the setting, NotFound for an I/O device that does not exist.
    """
    for problem in _problems(resources):
        raise InvalidArgument(problem)
    quota, period = _cpu_time(resources)
    memory, swap = resources.memory_bytes, resources.memory_swap_bytes
    if memory is not None and swap is None:
        swap = UNLIMITED if memory == UNLIMITED else 2 * memory
    return Limits(
        quota_us=quota,
        period_us=period,
        shares=resources.cpu_shares,
        cpus=resources.cpuset_cpus,
        mems=resources.cpuset_mems,
        memory_bytes=memory,
        swap_bytes=swap,
        swap_asked=resources.memory_swap_bytes is not None,
        reservation_bytes=resources.memory_reservation_bytes,
        swappiness=resources.memory_swappiness,
        oom_kill_disable=resources.oom_kill_disable,
        pids=None if resources.pids is None else (resources.pids if resources.pids > 0 else UNLIMITED),
        io_weight=resources.io_weight,
        io=tuple(_io_device(limit) for limit in resources.io),
        hugepages=dict(resources.hugepages),
        unified=dict(resources.unified),
    )


def limits_to_oci(limits: Limits) -> dict[str, Any]:
    """`linux.resources` of the OCI config, without devices (runtime-spec, config-linux.md, Control groups)."""
    cpu = {
        "quota": limits.quota_us,
        "period": limits.period_us,
        "shares": limits.shares,
        "cpus": limits.cpus,
        "mems": limits.mems,
    }
    memory = {
        "limit": limits.memory_bytes,
        "swap": limits.swap_bytes,
        "reservation": limits.reservation_bytes,
        "swappiness": limits.swappiness,
        "disableOOMKiller": limits.oom_kill_disable,
    }
    huge = [{"pageSize": size, "limit": value} for size, value in limits.hugepages.items()]
    sections: dict[str, Any] = {
        "cpu": _given(cpu),
        "memory": _given(memory),
        "pids": _given({"limit": limits.pids}),
        "blockIO": _block_io(limits),
        "hugepageLimits": huge,
        "unified": limits.unified,
    }
    return {name: section for name, section in sections.items() if section}


def parse_cpu_list(text: str) -> frozenset[int]:
    """The numbers of a list such as "0-2,4" (cpuset(7), List format); "" is none."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _given(section: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if value is not None}


def _block_io(limits: Limits) -> dict[str, Any]:
    section: dict[str, Any] = _given({"weight": limits.io_weight})
    for rate in _RATES:
        way, unit = rate.split("_")
        key = f"throttle{way.title()}{'Bps' if unit == 'bps' else 'IOPS'}Device"
        entries = [
            {"major": device.major, "minor": device.minor, "rate": device.rates[rate]}
            for device in limits.io
            if rate in device.rates
        ]
        if entries:
            section[key] = entries
    return section


def _cpu_time(resources: Resources) -> tuple[int | None, int | None]:
    if resources.cpus is not None:
        period = resources.cpu_period_us or DEFAULT_PERIOD_US
        return max(1000, round(resources.cpus * period)), period
    return resources.cpu_quota_us, resources.cpu_period_us


def _io_device(limit: IoLimit) -> IoDevice:
    try:
        info = os.stat(limit.path)  # noqa: PTH116 - st_rdev of exactly this name
    except OSError as error:
        raise NotFound(f"no block device {limit.path!r} to limit", cause=error.strerror or "") from None
    if not stat.S_ISBLK(info.st_mode):
        raise InvalidArgument(f"{limit.path} is not a block device", hint="I/O limits take a device such as /dev/vda")
    rates = {name: value for name in _RATES if (value := getattr(limit, name)) is not None}
    return IoDevice(major=os.major(info.st_rdev), minor=os.minor(info.st_rdev), rates=rates)


def _problems(r: Resources) -> Iterator[str]:
    yield from _cpu_problems(r)
    yield from _memory_problems(r)
    if r.pids is not None and r.pids < -1:
        yield f"pids {r.pids} is negative: -1 or 0 is unlimited"
    if r.io_weight is not None and not 10 <= r.io_weight <= 1000:
        yield f"io_weight {r.io_weight} is not in 10..1000"
    for limit in r.io:
        if any((value := getattr(limit, name)) is not None and value <= 0 for name in _RATES):
            yield f"an I/O rate of {limit.path} is not above zero"
    for size, value in r.hugepages.items():
        if not _PAGE_SIZE.match(size) or value < 0:
            yield f'hugepages {size!r}: {value}: want a page size such as "2MB" and a number of bytes'
    for name, text in r.unified.items():
        if "/" in name or "\0" in name + text or "." not in name:
            yield f"unified {name!r} is not the name of a cgroup file"


def _cpu_problems(r: Resources) -> Iterator[str]:
    if r.cpus is not None and r.cpu_quota_us is not None:
        yield "give cpus or cpu_quota_us, not both"
    if r.cpus is not None and not 0.01 <= r.cpus <= 100_000:
        yield f"cpus {r.cpus} is not in 0.01..100000"
    if r.cpu_quota_us is not None and r.cpu_quota_us != UNLIMITED and r.cpu_quota_us < 1000:
        yield f"cpu_quota_us {r.cpu_quota_us} is below 1000 (-1 is unlimited)"
    if r.cpu_period_us is not None and not 1000 <= r.cpu_period_us <= 1_000_000:
        yield f"cpu_period_us {r.cpu_period_us} is not in 1000..1000000"
    if r.cpu_shares is not None and not 2 <= r.cpu_shares <= 262_144:
        yield f"cpu_shares {r.cpu_shares} is not in 2..262144"
    for name, value in (("cpuset_cpus", r.cpuset_cpus), ("cpuset_mems", r.cpuset_mems)):
        if value is not None and not _CPU_LIST.match(value):
            yield f'{name} {value!r} is not a list such as "0-2,4"'


def _memory_problems(r: Resources) -> Iterator[str]:
    memory, swap, soft = r.memory_bytes, r.memory_swap_bytes, r.memory_reservation_bytes
    limited = memory is not None and memory != UNLIMITED
    if memory is not None and limited and memory < MIN_MEMORY_BYTES:
        yield f"memory_bytes {memory} is below the least of {MIN_MEMORY_BYTES} (6 MiB)"
    if swap is not None and memory is None:
        yield "memory_swap_bytes needs memory_bytes: it counts memory plus swap"
    if swap is not None and swap != UNLIMITED and (not limited or swap < (memory or 0)):
        yield f"memory_swap_bytes {swap} is below memory_bytes {memory}: it counts memory plus swap"
    if soft is not None and (soft < 0 or (memory is not None and limited and soft > memory)):
        yield f"memory_reservation_bytes {soft} is not in 0..{memory if limited else 'any'}"
    if r.memory_swappiness is not None and not 0 <= r.memory_swappiness <= 100:
        yield f"memory_swappiness {r.memory_swappiness} is not in 0..100"

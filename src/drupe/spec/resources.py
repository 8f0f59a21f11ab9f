"""Limits a pod or a container may be given. Names and units follow the OCI runtime spec, `linux.resources`."""

from __future__ import annotations

from drupe.spec.base import Spec, decode, plain


class IoLimit(Spec):
    """Throttle of one block device. path: the device node. Rates per second; None is unlimited."""

    path: str
    read_bps: int | None = None
    write_bps: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None


class Resources(Spec):
    """Limits; None leaves a setting as the kernel has it.

    cpus: processors' worth of time (1.5 = quota 150 % of period). cpu_shares: relative weight, 2..262144 (cgroup v1
    scale, 1024 default). cpuset_cpus/mems: list form "0-2,4". memory_bytes: hard limit. memory_swap_bytes: memory plus
    swap (-1 unlimited), as Docker counts. memory_reservation_bytes: soft limit. pids: task limit.
    io_weight: 10..1000. hugepages: page size ("2MB") to bytes. unified: raw cgroup v2 files to write.
    """

    cpus: float | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    pids: int | None = None
    io_weight: int | None = None
    io: tuple[IoLimit, ...] = ()
    hugepages: dict[str, int] = {}
    unified: dict[str, str] = {}


def merged(old: Resources, new: Resources) -> Resources:
    """`old` with everything that `new` sets."""
    return decode(Resources, plain(old) | plain(new), where="resources")

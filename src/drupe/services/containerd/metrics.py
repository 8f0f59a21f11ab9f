"""Counters of a task in containerd's words: those of cgroup v1 or v2, as the host has them."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage

from drupe.rpc.containerd import cgroup1_metrics_pb2 as v1
from drupe.rpc.containerd import cgroup2_metrics_pb2 as v2
from drupe.services.containerd.events import packed
from drupe.spec.status import Stats

_US = 1000
_NONE = 2**64 - 1  # how containerd writes a limit that is none


def metrics(stats: Stats, *, version: int) -> AnyMessage:
    """version: of the cgroups that were counted."""
    return packed(_v1(stats) if version == 1 else _v2(stats))


def _v1(stats: Stats) -> v1.Metrics:
    limit = stats.memory_limit_bytes or _NONE >> 1
    inactive = max(0, stats.memory_usage_bytes - stats.memory_working_set_bytes)
    return v1.Metrics(
        pids=v1.PidsStat(current=stats.pids, limit=stats.pids_limit),
        cpu=v1.CPUStat(
            usage=v1.CPUUsage(total=stats.cpu_usage_ns, kernel=stats.cpu_system_ns, user=stats.cpu_user_ns),
            throttling=v1.Throttle(
                throttled_periods=stats.cpu_throttled_periods, throttled_time=stats.cpu_throttled_ns
            ),
        ),
        memory=v1.MemoryStat(
            cache=stats.memory_file_bytes,
            rss=stats.memory_anon_bytes,
            total_cache=stats.memory_file_bytes,
            total_rss=stats.memory_anon_bytes,
            inactive_file=inactive,
            total_inactive_file=inactive,
            hierarchical_memory_limit=limit,
            usage=v1.MemoryEntry(usage=stats.memory_usage_bytes, max=stats.memory_peak_bytes, limit=limit),
            swap=v1.MemoryEntry(usage=stats.memory_usage_bytes + stats.swap_usage_bytes),
        ),
        memory_oom_control=v1.MemoryOomControl(oom_kill=stats.oom_kills),
        blkio=v1.BlkIOStat(
            io_service_bytes_recursive=_blkio(stats.io_read_bytes, stats.io_write_bytes),
            io_serviced_recursive=_blkio(stats.io_reads, stats.io_writes),
        ),
        network=[v1.NetworkStat(name="pod", **_network(stats))],
    )


def _blkio(read: int, write: int) -> list[v1.BlkIOEntry]:
    return [v1.BlkIOEntry(op="Read", value=read), v1.BlkIOEntry(op="Write", value=write)] if read or write else []


def _v2(stats: Stats) -> v2.Metrics:
    return v2.Metrics(
        pids=v2.PidsStat(current=stats.pids, limit=stats.pids_limit),
        cpu=v2.CPUStat(
            usage_usec=stats.cpu_usage_ns // _US,
            user_usec=stats.cpu_user_ns // _US,
            system_usec=stats.cpu_system_ns // _US,
            nr_throttled=stats.cpu_throttled_periods,
            throttled_usec=stats.cpu_throttled_ns // _US,
        ),
        memory=v2.MemoryStat(
            anon=stats.memory_anon_bytes,
            file=stats.memory_file_bytes,
            inactive_file=max(0, stats.memory_usage_bytes - stats.memory_working_set_bytes),
            usage=stats.memory_usage_bytes,
            usage_limit=stats.memory_limit_bytes or _NONE,
            swap_usage=stats.swap_usage_bytes,
            max_usage=stats.memory_peak_bytes,
        ),
        memory_events=v2.MemoryEvents(oom_kill=stats.oom_kills),
        io=v2.IOStat(
            usage=[
                v2.IOEntry(
                    rbytes=stats.io_read_bytes,
                    wbytes=stats.io_write_bytes,
                    rios=stats.io_reads,
                    wios=stats.io_writes,
                )
            ]
        ),
        network=[v2.NetworkStat(name="pod", **_network(stats))],
    )


def _network(stats: Stats) -> dict[str, int]:
    names = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
    return {name: getattr(stats, f"net_{name}") for name in names}

"""Counters of a task or pod as containerd has them: the messages of its cgroup libraries, v1 or v2 as the host is."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from drupe.rpc.containerd import cgroup1_metrics_pb2 as v1
from drupe.rpc.containerd import cgroup2_metrics_pb2 as v2
from drupe.spec.status import Stats

_URL = {v1.Metrics: "io.containerd.cgroups.v1.Metrics", v2.Metrics: "io.containerd.cgroups.v2.Metrics"}


def metrics_of(stats: Stats, *, unified: bool = False) -> Any:
    """As `google.protobuf.Any`, with the type's name that containerd decodes."""
    message: Message = _unified(stats) if unified else _hierarchies(stats)
    return Any(type_url=_URL[type(message)], value=message.SerializeToString())


def _hierarchies(stats: Stats) -> v1.Metrics:
    entry = v1.MemoryEntry
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
            total_inactive_file=inactive,
            hierarchical_memory_limit=stats.memory_limit_bytes,
            usage=entry(usage=stats.memory_usage_bytes, limit=stats.memory_limit_bytes, max=stats.memory_peak_bytes),
            swap=entry(usage=stats.swap_usage_bytes),
        ),
        blkio=v1.BlkIOStat(
            io_service_bytes_recursive=_io(stats.io_read_bytes, stats.io_write_bytes),
            io_serviced_recursive=_io(stats.io_reads, stats.io_writes),
        ),
        memory_oom_control=v1.MemoryOomControl(oom_kill=stats.oom_kills),
    )


def _io(reads: int, writes: int) -> list[v1.BlkIOEntry]:
    """Of all devices together."""
    return [v1.BlkIOEntry(op="Read", value=reads), v1.BlkIOEntry(op="Write", value=writes)]


def _unified(stats: Stats) -> v2.Metrics:
    return v2.Metrics(
        pids=v2.PidsStat(current=stats.pids, limit=stats.pids_limit),
        cpu=v2.CPUStat(
            usage_usec=stats.cpu_usage_ns // 1000,
            user_usec=stats.cpu_user_ns // 1000,
            system_usec=stats.cpu_system_ns // 1000,
            nr_throttled=stats.cpu_throttled_periods,
            throttled_usec=stats.cpu_throttled_ns // 1000,
        ),
        memory=v2.MemoryStat(
            anon=stats.memory_anon_bytes,
            file=stats.memory_file_bytes,
            inactive_file=max(0, stats.memory_usage_bytes - stats.memory_working_set_bytes),
            usage=stats.memory_usage_bytes,
            usage_limit=stats.memory_limit_bytes,
            max_usage=stats.memory_peak_bytes,
            swap_usage=stats.swap_usage_bytes,
        ),
        io=v2.IOStat(
            usage=[
                v2.IOEntry(
                    rbytes=stats.io_read_bytes, wbytes=stats.io_write_bytes, rios=stats.io_reads, wios=stats.io_writes
                )
            ]
        ),
        memory_events=v2.MemoryEvents(oom_kill=stats.oom_kills),
    )

"""What an agent counts, in our words. It has cgroup v2, whatever the host has."""

from __future__ import annotations

import time

from google.protobuf.any_pb2 import Any as AnyMessage

from drupe.rpc.containerd import cgroup2_metrics_pb2 as metrics_pb
from drupe.rpc.containerd import task_pb2
from drupe.rpc.guest import guest_pb2 as pb
from drupe.spec.status import ProcessInfo, Stats

STOPPED = task_pb2.STOPPED
_NO_LIMIT = 1 << 62  # the kernel's "max"


def stats_of(packed: AnyMessage) -> Stats:
    """Of io.containerd.cgroups.v2.Metrics."""
    told = metrics_pb.Metrics.FromString(packed.value)
    memory, cpu = told.memory, told.cpu
    return Stats(
        at=time.time(),
        cpu_usage_ns=cpu.usage_usec * 1000,
        cpu_user_ns=cpu.user_usec * 1000,
        cpu_system_ns=cpu.system_usec * 1000,
        cpu_throttled_ns=cpu.throttled_usec * 1000,
        cpu_throttled_periods=cpu.nr_throttled,
        memory_usage_bytes=memory.usage,
        memory_working_set_bytes=max(memory.usage - memory.inactive_file, 0),
        memory_peak_bytes=memory.max_usage,
        memory_limit_bytes=_limit(memory.usage_limit),
        memory_file_bytes=memory.file,
        memory_anon_bytes=memory.anon,
        swap_usage_bytes=memory.swap_usage,
        oom_kills=told.memory_events.oom_kill,
        pids=told.pids.current,
        pids_limit=_limit(told.pids.limit),
        io_read_bytes=sum(one.rbytes for one in told.io.usage),
        io_write_bytes=sum(one.wbytes for one in told.io.usage),
        io_reads=sum(one.rios for one in told.io.usage),
        io_writes=sum(one.wios for one in told.io.usage),
    )


def process_info(one: pb.Process) -> ProcessInfo:
    """One line of `top`; pids are the guest's."""
    return ProcessInfo(
        pid=one.pid,
        ppid=one.ppid,
        uid=one.uid,
        user=str(one.uid),
        state=one.state[:1] or "S",
        cpu_s=one.cpu_ns / 1e9,
        rss_bytes=one.rss_bytes,
        started_at=one.started_unix_ns / 1e9,
        command=one.command,
    )


def _limit(value: int) -> int:
    return 0 if value >= _NO_LIMIT else value

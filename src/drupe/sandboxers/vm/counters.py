"""What an agent counts, in our words. It has cgroup v2, whatever the host has, and may count anything."""

from __future__ import annotations

import time
from collections.abc import Iterable

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from drupe.errors import DataLoss
from drupe.hypervisors.words import readable
from drupe.rpc.containerd import cgroup2_metrics_pb2 as metrics_pb
from drupe.rpc.containerd import task_pb2
from drupe.rpc.guest import guest_pb2 as pb
from drupe.spec.status import ProcessInfo, Stats

STOPPED = task_pb2.STOPPED
_NO_LIMIT = 1 << 62  # the kernel's "max"
_MAX = (1 << 63) - 1
_COMMAND_CHARS = 4096
_SECONDS_MAX = 1 << 33  # until the year 2242


def stats_of(packed: AnyMessage) -> Stats:
    """Of io.containerd.cgroups.v2.Metrics. Raises DataLoss."""
    try:
        told = metrics_pb.Metrics.FromString(packed.value)
    except DecodeError as error:
        raise DataLoss("the guest's agent tells no statistics", cause=str(error)) from None
    memory, cpu = told.memory, told.cpu
    return Stats(
        at=time.time(),
        cpu_usage_ns=_sum([cpu.usage_usec * 1000]),
        cpu_user_ns=_sum([cpu.user_usec * 1000]),
        cpu_system_ns=_sum([cpu.system_usec * 1000]),
        cpu_throttled_ns=_sum([cpu.throttled_usec * 1000]),
        cpu_throttled_periods=_sum([cpu.nr_throttled]),
        memory_usage_bytes=_sum([memory.usage]),
        memory_working_set_bytes=max(_sum([memory.usage]) - memory.inactive_file, 0),
        memory_peak_bytes=_sum([memory.max_usage]),
        memory_limit_bytes=_limit(memory.usage_limit),
        memory_file_bytes=_sum([memory.file]),
        memory_anon_bytes=_sum([memory.anon]),
        swap_usage_bytes=_sum([memory.swap_usage]),
        oom_kills=_sum([told.memory_events.oom_kill]),
        pids=_sum([told.pids.current]),
        pids_limit=_limit(told.pids.limit),
        io_read_bytes=_sum(one.rbytes for one in told.io.usage),
        io_write_bytes=_sum(one.wbytes for one in told.io.usage),
        io_reads=_sum(one.rios for one in told.io.usage),
        io_writes=_sum(one.wios for one in told.io.usage),
    )


def process_info(one: pb.Process) -> ProcessInfo:
    """One line of `top`; pids are the guest's."""
    return ProcessInfo(
        pid=one.pid,
        ppid=one.ppid,
        uid=one.uid,
        user=str(one.uid),
        state=readable(one.state[:1]) or "S",
        cpu_s=one.cpu_ns / 1e9,
        rss_bytes=_sum([one.rss_bytes]),
        started_at=min(max(one.started_unix_ns / 1e9, 0.0), _SECONDS_MAX),
        command=readable(one.command, chars=_COMMAND_CHARS),
    )


def _limit(value: int) -> int:
    return 0 if value >= _NO_LIMIT else value


def _sum(values: Iterable[int]) -> int:
    """No more than a number can be that is told on."""
    return min(sum(values), _MAX)

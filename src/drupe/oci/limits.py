"""`linux.resources` of a config.json as our own limits: what they cannot say is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from drupe.errors import Unsupported
from drupe.oci.runtime_spec import BlockDevice, BlockIo, Cpu, LinuxResources, Memory
from drupe.spec.resources import IoLimit, Resources

_RATES = {
    "throttle_read_bps_device": "read_bps",
    "throttle_write_bps_device": "write_bps",
    "throttle_read_iops_device": "read_iops",
    "throttle_write_iops_device": "write_iops",
}


def resources_of(oci: LinuxResources | None) -> Resources:
    """The limits, devices aside. Zero and absent are the same, as for runc: left as it is. Raises Unsupported naming
    what nothing here carries out."""
    if oci is None:
        return Resources()
    for name in _refused(oci):
        raise Unsupported(f"linux.resources.{name} is not carried out", feature=name)
    cpu, memory, block = oci.cpu or Cpu(), oci.memory or Memory(), oci.block_io or BlockIo()
    limit = memory.limit or None
    return Resources(
        cpu_quota_us=cpu.quota or None,
        cpu_period_us=cpu.period or None,
        cpu_shares=cpu.shares or None,
        cpuset_cpus=cpu.cpus or None,
        cpuset_mems=cpu.mems or None,
        memory_bytes=limit,
        memory_swap_bytes=memory.swap or None if limit else None,
        memory_reservation_bytes=memory.reservation or None,
        memory_swappiness=memory.swappiness,
        oom_kill_disable=memory.disable_oom_killer or None,
        pids=(oci.pids.limit or None) if oci.pids else None,
        io_weight=block.weight or None,
        io=tuple(_io(block)),
        hugepages={one.page_size: one.limit for one in oci.hugepage_limits or ()},
        unified=oci.unified or {},
    )


def _refused(oci: LinuxResources) -> Iterator[str]:
    cpu, memory, block = oci.cpu or Cpu(), oci.memory or Memory(), oci.block_io or BlockIo()
    asked = {
        "cpu.burst": cpu.burst,
        "cpu.idle": cpu.idle,
        "cpu.realtimeRuntime": cpu.realtime_runtime,
        "cpu.realtimePeriod": cpu.realtime_period,
        "memory.kernel": memory.kernel,
        "memory.kernelTCP": memory.kernel_tcp,
        "blockIO.leafWeight": block.leaf_weight,
        "blockIO.weightDevice": block.weight_device,
        "network": oci.network and (oci.network.class_id or oci.network.priorities),
        "rdma": oci.rdma,
    }
    yield from (name for name, value in asked.items() if value and value != -1)


def _io(block: BlockIo) -> Iterator[IoLimit]:
    """One limit for each device, whatever the lists that name it."""
    found: dict[str, dict[str, int]] = {}
    for name, rate in _RATES.items():
        for device in getattr(block, name) or ():
            found.setdefault(_path(device), {})[rate] = device.rate or 0
    for path, rates in found.items():
        yield IoLimit(path=path, **rates)


def _path(device: BlockDevice) -> str:
    """Its node: /dev/block has a link for each where udev runs, and sysfs its name everywhere."""
    link = Path(f"/sys/dev/block/{device.major}:{device.minor}")
    return f"/dev/{link.resolve().name}" if link.exists() else f"/dev/block/{device.major}:{device.minor}"

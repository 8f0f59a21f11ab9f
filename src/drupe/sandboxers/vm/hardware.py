"""Hardware of the host that a pod has for its own: whole IOMMU groups, bound to vfio-pci while its machine is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from drupe.errors import HelperFailed
from drupe.hypervisors.contract import HostDevice
from drupe.resources import vfio
from drupe.resources.vfio import Bound
from drupe.sandboxers.vm.records import PodRecord
from drupe.spec.container import VFIO
from drupe.spec.pod import PodSpec

SYSFS = vfio.SYSFS


def asked(spec: PodSpec) -> list[str]:
    """PCI addresses that the containers of a pod ask for."""
    return list(dict.fromkeys(_addresses(spec)))


def _addresses(spec: PodSpec) -> Iterator[str]:
    for container in spec.containers:
        for device in container.devices:
            if device.path.startswith(VFIO):
                yield device.path.removeprefix(VFIO)


async def take(record: PodRecord, spec: PodSpec) -> None:
    """Bind the groups of what a pod asks for, all or none; what drove each before is in its record first, which is
    written down. InvalidArgument, NotFound, Unsupported without an IOMMU, InvalidState for what the host uses."""
    addresses = asked(spec)
    groups = {group.number: group for group in (vfio.group_of(one, sysfs=SYSFS) for one in addresses)}
    members = [address for group in groups.values() for address in group.devices]
    record.bound = [(address, vfio.driver_of(address, sysfs=SYSFS)) for address in members]
    record.save()
    try:
        for group in groups.values():
            await asyncio.to_thread(vfio.bind, group, addresses, sysfs=SYSFS)
    except BaseException:
        await give_back(record)
        raise


async def give_back(record: PodRecord) -> None:
    """Each to the driver that it had. HelperFailed names what could not be given back. Idempotent."""
    if not record.bound:
        return
    bound = [Bound(address, driver) for address, driver in record.bound]
    problems = await asyncio.to_thread(vfio.restore, bound, sysfs=SYSFS)
    if problems:
        raise HelperFailed("devices were not given back to the host", stage="devices", cause="; ".join(problems))
    record.bound = []
    record.save()


def host_devices(record: PodRecord) -> list[HostDevice]:
    """As the driver wants them."""
    return [HostDevice(id=f"host{number}", address=address) for number, (address, _) in enumerate(record.bound)]

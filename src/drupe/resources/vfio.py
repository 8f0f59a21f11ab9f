"""Host devices for machines: whole IOMMU groups bound to vfio-pci, and given back (Documentation/driver-api/vfio.rst).

All is done through sysfs; what was before is remembered by the caller: `Bound` is plain data for the journal.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drupe.errors import DrupeError, InvalidArgument, InvalidState, NotFound, Unsupported, from_os_error

SYSFS = Path("/sys")
_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_BRIDGE_CLASS = "0x06"  # of host and PCI bridges, which stay with their driver
_DRIVER = "vfio-pci"
_BINDS_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Bound:
    """One device of a group that was bound. driver: what drove it before, "" for nothing."""

    address: str
    driver: str


@dataclass(frozen=True, slots=True)
class Group:
    """An IOMMU group: what a guest gets, it gets whole. devices: addresses, without bridges."""

    number: int
    devices: tuple[str, ...]

    @property
    def node(self) -> str:
        """What the VMM opens beside /dev/vfio/vfio."""
        return f"/dev/vfio/{self.number}"


def group_of(address: str, *, sysfs: Path = SYSFS) -> Group:
    """The group of a device. InvalidArgument, NotFound, and Unsupported where there is no IOMMU."""
    if not _ADDRESS.fullmatch(address):
        raise InvalidArgument(f"{address!r} is no PCI address", hint='such as "0000:3b:00.1"')
    device = _device(address, sysfs)
    if not device.exists():
        raise NotFound(f"there is no PCI device {address}", stage="devices")
    link = device / "iommu_group"
    if not link.exists():
        hint = "switch the IOMMU on: intel_iommu=on or amd_iommu=on for the kernel, VT-d or AMD-Vi in the firmware"
        raise Unsupported(f"PCI device {address} is behind no IOMMU", feature="host devices", hint=hint)
    group = link.resolve()
    members = sorted(path.name for path in (group / "devices").iterdir())
    return Group(int(group.name), tuple(name for name in members if not _is_bridge(name, sysfs)))


def bind(group: Group, allowed: Sequence[str], *, sysfs: Path = SYSFS) -> list[Bound]:
    """Binds a group's devices to vfio-pci, all or none. allowed: addresses that may be taken from the host: a group
    with another that a driver of the host uses is refused. What each was bound to: for `restore`."""
    _check_free(group, sysfs, allowed)
    if not (sysfs / "bus/pci/drivers" / _DRIVER).exists():
        raise Unsupported("the kernel has no vfio-pci", feature="host devices", hint="modprobe vfio-pci")
    done: list[Bound] = []
    try:
        for address in group.devices:
            done.append(Bound(address, driver_of(address, sysfs=sysfs)))
            _rebind(address, _DRIVER, sysfs)
    except BaseException as error:
        for problem in restore(done, sysfs=sysfs):
            error.add_note(f"undo: {problem}")
        raise
    return done


def restore(bound: Sequence[Bound], *, sysfs: Path = SYSFS) -> list[str]:
    """Gives devices back to their drivers; all are tried. What could not be done, in words. Idempotent."""
    problems = []
    for device in reversed(bound):
        if not _device(device.address, sysfs).exists():
            continue  # pulled out meanwhile
        try:
            _rebind(device.address, device.driver, sysfs)
        except DrupeError as error:
            problems.append(f"{device.address}: {error}")
    return problems


def driver_of(address: str, *, sysfs: Path = SYSFS) -> str:
    """What drives a device now; "" for nothing."""
    link = _device(address, sysfs) / "driver"
    try:
        return link.readlink().name
    except FileNotFoundError:
        return ""


def _check_free(group: Group, sysfs: Path, allowed: Sequence[str]) -> None:
    for address in group.devices:
        driver = driver_of(address, sysfs=sysfs)
        if driver not in ("", _DRIVER) and address not in allowed:
            what = f"IOMMU group {group.number} also has {address}, which the host's driver {driver} uses"
            hint = f"ask for {address} too, or put the device into another slot"
            raise InvalidState(what, stage="devices", hint=hint)


def _rebind(address: str, driver: str, sysfs: Path) -> None:
    """driver_override names who may have it; "" is as the kernel chooses, and the driver asked for is then probed."""
    device = _device(address, sysfs)
    now = driver_of(address, sysfs=sysfs)
    override = driver if driver == _DRIVER else ""
    _write(device / "driver_override", override + "\n")
    if now == driver:
        return
    if now:
        _write(device / "driver/unbind", address)
        _await_driver(address, "", sysfs)
    if driver:
        _write(sysfs / "bus/pci/drivers_probe", address)
        _await_driver(address, driver, sysfs)


def _await_driver(address: str, driver: str, sysfs: Path) -> None:
    deadline = time.monotonic() + _BINDS_WITHIN_S
    while (now := driver_of(address, sysfs=sysfs)) != driver:
        if time.monotonic() > deadline:
            what = f"did not come to driver {driver}" if driver else f"was not let go of by driver {now}"
            raise InvalidState(f"PCI device {address} {what}", stage="devices", cause=f"it has {now or 'none'}")
        time.sleep(0.01)


def _device(address: str, sysfs: Path) -> Path:
    return sysfs / "bus/pci/devices" / address


def _is_bridge(address: str, sysfs: Path) -> bool:
    return (_device(address, sysfs) / "class").read_text().startswith(_BRIDGE_CLASS)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise from_os_error(error) from None

"""A tree of files that behaves as sysfs does for PCI devices and their drivers: what is written has its effect."""

from __future__ import annotations

import threading
from pathlib import Path

from drupe.resources import vfio

GPU, SOUND, BRIDGE, NIC = "0000:3b:00.0", "0000:3b:00.1", "0000:3a:00.0", "0000:5e:00.0"


class FakeSysfs:
    """Devices with drivers and groups. A thread is the kernel: it reads the control files, which are FIFOs of one line.
    broken: devices that no driver takes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.broken: set[str] = set()
        self.homes: dict[str, str] = {}
        (root / "bus/pci/drivers/vfio-pci").mkdir(parents=True)
        for address, driver, group, kind in (
            (GPU, "nouveau", 7, "0x030000"),
            (SOUND, "snd_hda_intel", 7, "0x040300"),
            (BRIDGE, "pcieport", 7, "0x060400"),
            (NIC, "", 9, "0x020000"),
        ):
            self._add(address, driver, group, kind)
        self._probe = root / "bus/pci/drivers_probe"
        self._probe.touch()
        self._done = threading.Event()
        self._kernel = threading.Thread(target=self._run)
        self._kernel.start()

    def _add(self, address: str, driver: str, group: int, kind: str) -> None:
        device = self.root / "devices/pci0" / address
        device.mkdir(parents=True)
        links = self.root / "bus/pci/devices"
        links.mkdir(exist_ok=True)
        (links / address).symlink_to(device)
        (device / "class").write_text(kind + "\n")
        (device / "driver_override").write_text("(null)\n")
        members = self.root / "kernel/iommu_groups" / str(group) / "devices"
        members.mkdir(parents=True, exist_ok=True)
        (members / address).symlink_to(device)
        (device / "iommu_group").symlink_to(members.parent)
        self.homes[address] = driver
        if driver:
            self._take(address, driver)

    def _take(self, address: str, driver: str) -> None:
        home = self.root / "bus/pci/drivers" / driver
        home.mkdir(exist_ok=True)
        (home / "unbind").touch()
        (self.root / "devices/pci0" / address / "driver").symlink_to(home)

    def _run(self) -> None:
        while not self._done.wait(0.001):
            for unbind in self.root.glob("bus/pci/drivers/*/unbind"):
                if address := self._read(unbind):
                    (self.root / "devices/pci0" / address / "driver").unlink()
            if address := self._read(self._probe):
                wanted = (self.root / "devices/pci0" / address / "driver_override").read_text().strip()
                driver = wanted or self.homes[address]
                if driver and not (driver == "vfio-pci" and address in self.broken):
                    self._take(address, driver)

    def _read(self, path: Path) -> str:
        if text := path.read_text().strip():
            path.write_text("")
        return text

    def drivers(self) -> dict[str, str]:
        return {address: vfio.driver_of(address, sysfs=self.root) for address in self.homes}

    def close(self) -> None:
        self._done.set()
        self._kernel.join()

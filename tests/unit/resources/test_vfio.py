"""VFIO's sysfs logic, on a tree of files that behaves as sysfs does: what is written has its effect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drupe.errors import InvalidArgument, InvalidState, NotFound, Unsupported
from drupe.resources import vfio
from drupe.resources.vfio import Bound, Group
from framework.fakesysfs import GPU, NIC, SOUND, FakeSysfs


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSysfs]:
    monkeypatch.setattr(vfio, "_BINDS_WITHIN_S", 0.5)
    fake = FakeSysfs(tmp_path)
    yield fake
    fake.close()


def test_a_whole_group_comes_and_goes(sysfs: FakeSysfs) -> None:
    """Both functions of the card, not the bridge above; given back, each has its own driver again, and no override."""
    before = sysfs.drivers()
    group = vfio.group_of(GPU, sysfs=sysfs.root)
    assert (group, group.node) == (Group(7, (GPU, SOUND)), "/dev/vfio/7")
    bound = vfio.bind(group, [GPU, SOUND], sysfs=sysfs.root)
    assert bound == [Bound(GPU, "nouveau"), Bound(SOUND, "snd_hda_intel")]
    assert sysfs.drivers() == before | {GPU: "vfio-pci", SOUND: "vfio-pci"}
    for _ in range(2):
        assert vfio.restore(bound, sysfs=sysfs.root) == []
        assert sysfs.drivers() == before
    assert (sysfs.root / "bus/pci/devices" / GPU / "driver_override").read_text().strip() == ""


def test_a_device_that_nothing_drove(sysfs: FakeSysfs) -> None:
    bound = vfio.bind(vfio.group_of(NIC, sysfs=sysfs.root), [NIC], sysfs=sysfs.root)
    assert sysfs.drivers()[NIC] == "vfio-pci"
    assert vfio.restore(bound, sysfs=sysfs.root) == []
    assert sysfs.drivers()[NIC] == ""


def test_a_neighbour_that_the_host_uses(sysfs: FakeSysfs) -> None:
    """Nothing is taken from the host that was not asked for."""
    before = sysfs.drivers()
    with pytest.raises(InvalidState, match=f"also has {SOUND}"):
        vfio.bind(vfio.group_of(GPU, sysfs=sysfs.root), [GPU], sysfs=sysfs.root)
    assert sysfs.drivers() == before


def test_half_a_group_is_given_back(sysfs: FakeSysfs) -> None:
    before = sysfs.drivers()
    sysfs.broken = {SOUND}
    with pytest.raises(InvalidState, match=f"{SOUND} did not come to driver vfio-pci"):
        vfio.bind(vfio.group_of(GPU, sysfs=sysfs.root), [GPU, SOUND], sysfs=sysfs.root)
    assert sysfs.drivers() == before


def test_what_is_refused(sysfs: FakeSysfs) -> None:
    for address, error in (("3b:00.0", InvalidArgument), ("../../x", InvalidArgument), ("0000:00:1f.7", NotFound)):
        with pytest.raises(error):
            vfio.group_of(address, sysfs=sysfs.root)
    (sysfs.root / "devices/pci0" / NIC / "iommu_group").unlink()
    with pytest.raises(Unsupported, match="behind no IOMMU"):
        vfio.group_of(NIC, sysfs=sysfs.root)
    (sysfs.root / "bus/pci/drivers/vfio-pci").rmdir()
    with pytest.raises(Unsupported, match="no vfio-pci"):
        vfio.bind(Group(7, (GPU, SOUND)), [GPU, SOUND], sysfs=sysfs.root)

"""What of machines can be told without one: command lines, configs, templates on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drupe.errors import Unsupported
from drupe.hypervisors.contract import Disk, MachineConfig
from drupe.hypervisors.qemu.arguments import command_line
from drupe.sandboxers.kinds import kind_of
from drupe.sandboxers.vm.oci import adapted
from drupe.sandboxers.vm.options import VmOptions
from drupe.sandboxers.vm.records import PodRecord
from drupe.sandboxers.vm.roots import RootDisk, binds_of, plan
from drupe.sandboxers.vm.sandboxer import lacking
from drupe.sandboxers.vm.templates import SAVED_MEMORY, Templates

FILTER = "run.oci.seccomp_bpf_data"


def line(tmp_path: Path, **more: Any) -> str:
    config = MachineConfig(id="m", dir=tmp_path, kernel=Path("/kernel"), initrd=Path("/initrd"), **more)
    return " ".join(command_line(config, "qemu", "q35", tmp_path / "empty"))


def test_disks_sit_in_their_places_and_nothing_in_the_rest(tmp_path: Path) -> None:
    words = line(tmp_path, spare_disks=2, disks=[Disk("a", Path("/a"), read_only=True)])
    assert "virtio-blk-pci-non-transitional,id=a,drive=n-a,serial=a,bus=pcie.0,addr=0x10" in words
    assert "virtio-blk-pci-non-transitional,id=spare1,drive=n-spare1,bus=pcie.0,addr=0x11" in words
    assert "spare0" not in words
    assert "null-co" not in line(tmp_path, disks=[Disk("a", Path("/a"))])


def test_a_saved_machine_finds_its_disks_where_they_were(tmp_path: Path) -> None:
    disks = [Disk("a", Path("/a"))]
    places = {"a": "bus=pcie.0,addr=0x11", "spare0": "bus=pcie.0,addr=0x10", "balloon": "bus=pcie.0,addr=0x9"}
    words = line(tmp_path, spare_disks=2, disks=disks, places=places, saved=tmp_path)
    assert "id=a,drive=n-a,serial=a,bus=pcie.0,addr=0x11" in words
    assert "id=spare0,drive=n-spare0,bus=pcie.0,addr=0x10" in words
    assert "/kernel" not in words and "/initrd" not in words


def test_a_filter_that_is_compiled_is_not_sent_twice() -> None:
    oci = {"linux": {"seccomp": {"syscalls": ["many"]}}, "annotations": {FILTER: "AAAA"}}
    config = adapted(oci, guest="g", root="/", binds={})
    assert config["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ERRNO"}  # nothing is allowed without the other
    assert config["annotations"][FILTER] == "AAAA"
    plain = adapted({"linux": {"seccomp": {"syscalls": ["many"]}}}, guest="g", root="/", binds={})
    assert plain["linux"]["seccomp"] == {"syscalls": ["many"]}


def test_without_a_share_only_files_of_the_pods_own_are_bound() -> None:
    hosts = {"type": "bind", "source": "/run/x/hosts", "destination": "/etc/hosts"}
    assert binds_of({"mounts": [hosts, {"type": "tmpfs", "destination": "/tmp"}]}) == {
        "/run/x/hosts": "/run/drupe/etc/hosts"
    }
    with pytest.raises(Unsupported, match="/data cannot be mounted"):
        binds_of({"mounts": [{"type": "bind", "source": "/srv", "destination": "/data"}]})


def test_the_lowest_disk_is_mounted_first() -> None:
    from drupe.rpc.guest import guest_pb2 as pb

    disks = [RootDisk(id="image", path="/i", image="sha256:1"), RootDisk(id="own", path="/o")]
    made = plan(pb.PutBundleRequest(id="c"), disks, read_only=False)
    assert [mount.device.disk_serial for mount in made.rootfs] == ["image", "own"] and made.writable_upper


def test_who_names_machines_only_gets_them_where_no_guest_image_is(tmp_path: Path) -> None:
    assert "drupe guest build" in lacking(tmp_path, VmOptions())
    assert kind_of("vm").lacks(tmp_path, VmOptions()) == lacking(tmp_path, VmOptions())
    assert kind_of("runc").lacks(tmp_path, VmOptions()) == ""


def record(**more: Any) -> PodRecord:
    made = PodRecord(
        id="p", dir="/d", cgroup="/c", hostname="h", netns="", kernel="/g/kernel", initrd="/g/initrd", append=[],
        accelerator="tcg", machine_type="", memory_bytes=1 << 28, memory_max_bytes=1 << 28, processors=1,
        processors_max=1, rootfs="block",
    )  # fmt: skip
    return msgspec.structs.replace(made, **more)


def test_a_template_serves_its_size_and_is_old_with_another_monitor(tmp_path: Path) -> None:
    program, templates = tmp_path / "qemu", Templates(tmp_path / "templates")
    program.write_text("1")
    scratch = templates.directory / ".making"
    scratch.mkdir(parents=True)
    (scratch / SAVED_MEMORY).write_bytes(b"memory")
    made = templates.keep(scratch, record(), str(program))
    assert templates.find(record(rootfs="virtiofs"), str(program)) is not None
    assert templates.find(record(memory_bytes=1 << 27), str(program)) is None
    assert made.basis == templates.basis_of(record(memory_bytes=1 << 27), str(program))
    os.utime(program, (1, 1))
    assert templates.find(record(), str(program)) is None
    assert made.basis != templates.basis_of(record(), str(program))
    assert [one.id for one in templates] == [made.id]

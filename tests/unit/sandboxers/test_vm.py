"""What of machines can be told without one: command lines, configs, templates on disk."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drupe.errors import InvalidArgument, ResourceExhausted, Unsupported
from drupe.hypervisors.contract import Disk, MachineConfig, Share
from drupe.hypervisors.qemu.arguments import command_line
from drupe.sandboxers.kinds import kind_of
from drupe.sandboxers.vm import devices, filling, share, sizing
from drupe.sandboxers.vm.oci import adapted
from drupe.sandboxers.vm.options import ROOTFS, VmOptions, check_annotations
from drupe.sandboxers.vm.records import PodRecord, TaskRecord
from drupe.sandboxers.vm.roots import RootDisk, binds_of, plan
from drupe.sandboxers.vm.sandboxer import lacking
from drupe.sandboxers.vm.templates import SAVED_MEMORY, Templates, code_of, filled, note_code
from drupe.spec import PodSpec
from drupe.spec.resources import Resources
from drupe.spec.status import ExitStatus

FILTER = "run.oci.seccomp_bpf_data"


def line(tmp_path: Path, **more: Any) -> str:
    config = MachineConfig(id="m", dir=tmp_path, kernel=Path("/kernel"), initrd=Path("/initrd"), **more)
    return " ".join(command_line(config, "qemu", "q35", tmp_path / "empty"))


def test_disks_sit_in_their_places_and_nothing_in_the_rest(tmp_path: Path) -> None:
    words = line(tmp_path, spare_disks=2, disks=[Disk("a", Path("/a"), read_only=True)])
    assert "virtio-blk-pci-non-transitional,id=a,drive=n-a,serial=a,bus=pcie.0,addr=0x10" in words
    assert "virtio-blk-pci-non-transitional,id=spare1,drive=n-spare1,bus=pcie.0,addr=0x11" in words
    assert "spare0" not in words
    writable = line(tmp_path, disks=[Disk("a", Path("/a"))])
    assert "null-co" not in writable and "discard=off,write-zeroes=off" in writable


def test_a_saved_machine_finds_its_disks_where_they_were(tmp_path: Path) -> None:
    disks = [Disk("a", Path("/a"), read_only=True)]
    places = {"a": "bus=pcie.0,addr=0x11", "spare0": "bus=pcie.0,addr=0x10", "balloon": "bus=pcie.0,addr=0x9"}
    words = line(tmp_path, spare_disks=2, disks=disks, places=places, saved=tmp_path)
    assert "id=a,drive=n-a,serial=a,bus=pcie.0,addr=0x11" in words
    assert "id=spare0,drive=n-spare0,bus=pcie.0,addr=0x10" in words
    assert "/kernel" not in words and "/initrd" not in words


def test_translated_code_is_bounded_where_memory_is_shared(tmp_path: Path) -> None:
    """By the machine's size; not where it boots, or has its memory for itself, or a processor that runs it."""
    clone = {"saved": tmp_path, "share_memory": True, "memory_bytes": 224 << 20}
    assert "-accel tcg,tb-size=48 " in line(tmp_path, **clone)
    assert "-accel tcg,tb-size=102 " in line(tmp_path, **clone | {"memory_bytes": 1 << 30})
    assert "-accel kvm " in line(tmp_path, **clone, accelerator="kvm")
    assert "-accel tcg " in line(tmp_path, **clone | {"share_memory": False})
    assert "-accel tcg " in line(tmp_path)


def test_code_that_is_translated_is_given_back_where_there_is_any(tmp_path: Path) -> None:
    plugin = tmp_path / "trim.so"
    assert f"-plugin {plugin}" in line(tmp_path, trim=plugin)
    assert "-plugin" not in line(tmp_path, trim=plugin, accelerator="kvm")
    assert "-plugin" not in line(tmp_path)


def test_a_share_is_plugged_in_before_a_saved_machine_goes_on(tmp_path: Path) -> None:
    """A machine is not loaded with one on its command line."""
    share = Share("share", "drupe", tmp_path, socket=tmp_path / "virtiofs.sock")
    assert "vhost-user-fs" in line(tmp_path, shares=[share])
    assert "vhost-user-fs" not in line(tmp_path, shares=[share], saved=tmp_path)


@pytest.mark.parametrize("out", [range(0), range(2 << 20, 4 << 20), range(4096 * 2), range(3 << 20, 8 << 20)])
def test_memory_is_filled_with_a_templates(tmp_path: Path, out: range) -> None:
    """By a program, which tells when it is done; what is a hole stays one, and what is left out is one."""
    saved, size = tmp_path / SAVED_MEMORY, 8 << 20
    with saved.open("wb") as file:
        file.truncate(size)
        for at in (4096, 3 << 20, size - 4096):
            os.pwrite(file.fileno(), os.urandom(4096), at)
    memory = os.memfd_create("memory")
    told, tells = os.pipe()
    os.truncate(memory, size)
    try:
        numbered = f'exec 5<>/proc/self/fd/{memory} 6>/proc/self/fd/{tells}; exec "$@"'
        words = [*filled(tmp_path, 5, 6, out), "/bin/sh", "-c", "[ ! -e /proc/self/fd/6 ]"]
        subprocess.run(["/bin/sh", "-c", numbered, "sh", *words], pass_fds=(memory, tells), check=True)
        os.close(tells)
        assert os.read(told, 2) == filling.DONE
        there = saved.read_bytes()
        assert os.pread(memory, size, 0) == there[: out.start] + bytes(len(out)) + there[out.stop :]
        assert os.fstat(memory).st_blocks * 512 < size // 4
    finally:
        os.close(memory)
        os.close(told)


@pytest.mark.parametrize(("begin", "end", "found"), [(1 << 24, 3 << 24, 2 << 24), (0, 0, 0), (1 << 31, 3 << 30, 0)])
def test_a_template_knows_where_its_kernels_code_is(tmp_path: Path, begin: int, end: int, found: int) -> None:
    """Where it was told, and it is where the file of the memory has it."""
    note_code(tmp_path, begin, end)
    assert len(code_of(tmp_path)) == found


def test_an_end_is_that_of_the_process_that_was_started() -> None:
    """A guest tells the end of an earlier start once more to a daemon that comes back."""
    task = TaskRecord(
        id="t", sandbox="s", cgroup="", bundle="", tty=False, stdin=False, log=None, exit_file="", guest="t", pid=7
    )
    assert task.ends_with(7) and not task.ends_with(6)
    task.exit = ExitStatus(code=1)
    assert not task.ends_with(7)


def test_a_filter_that_is_compiled_is_not_sent_twice() -> None:
    oci = {"linux": {"seccomp": {"syscalls": ["many"]}}, "annotations": {FILTER: "AAAA"}}
    config = adapted(oci, guest="g", root="/", binds={})
    assert config["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ERRNO"}  # nothing is allowed without the other
    assert config["annotations"][FILTER] == "AAAA"
    plain = adapted({"linux": {"seccomp": {"syscalls": ["many"]}}}, guest="g", root="/", binds={})
    assert plain["linux"]["seccomp"] == {"syscalls": ["many"]}


def test_without_a_share_only_files_of_the_pods_own_are_bound() -> None:
    hosts = {"type": "bind", "source": "/run/x/hosts", "destination": "/etc/hosts"}
    mounts = [hosts, {"type": "tmpfs", "destination": "/tmp"}, {"type": "bind", "source": "/m", "destination": "/m"}]
    binds = binds_of({"mounts": mounts}, {"/m": "/run/drupe/memory/m"})
    assert binds == {"/run/x/hosts": "/run/drupe/etc/hosts", "/m": "/run/drupe/memory/m"}
    with pytest.raises(Unsupported, match="/data cannot be mounted"):
        binds_of({"mounts": [{"type": "bind", "source": "/srv", "destination": "/data"}]}, {})


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


def test_a_template_whose_files_were_changed_serves_nobody(tmp_path: Path) -> None:
    """One of a version of before, which knows nothing of its files, serves as ever."""
    program, templates = tmp_path / "qemu", Templates(tmp_path / "templates")
    program.write_text("1")
    scratch = templates.directory / ".making"
    scratch.mkdir(parents=True)
    (scratch / SAVED_MEMORY).write_bytes(b"memory")
    (scratch / "devices").write_bytes(b"state")
    made = templates.keep(scratch, record(), str(program))
    home = templates.directory / made.id
    assert templates.find(record(), str(program)) == home and not templates.damaged(record(), str(program))
    (home / "devices").write_bytes(b"State")
    assert templates.find(record(), str(program)) is None
    assert f"drupe template rm {made.id[:12]}" in templates.damaged(record(), str(program))
    (home / "devices").write_bytes(b"state")
    for harm in (lambda: os.truncate(home / SAVED_MEMORY, 1), (home / "devices").unlink, (home / SAVED_MEMORY).unlink):
        harm()
        assert templates.find(record(), str(program)) is None
    about = home / "template.json"
    about.write_text(about.read_text().replace(made.files, ""))
    assert templates.find(record(), str(program)) == home
    about.write_text("{")
    assert templates.find(record(), str(program)) is None and templates.damaged(record(), str(program))
    assert not templates.damaged(record(memory_bytes=1 << 27), str(program))


def test_sizes_that_no_host_has_are_refused(tmp_path: Path) -> None:
    """Before anything is made; what has no limit, in the words of the OCI, is as one that names none."""
    with pytest.raises(ResourceExhausted, match="has at most 1024 MiB of memory, not 2048"):
        sizing.require_fits(2 << 30, VmOptions(memory_max_bytes=1 << 30))
    options, unlimited = VmOptions(), Resources(memory_bytes=-1)
    none = sizing.memory_for(Resources(), [Resources()], options)
    assert sizing.memory_for(unlimited, [unlimited], options) == none
    assert (
        sizing.memory_for(unlimited, [Resources(memory_bytes=64 << 20)], options) == (64 << 20) + options.overhead_bytes
    )


def test_an_annotation_that_nobody_knows_is_refused() -> None:
    """A slip of the pen is not a machine that shares files with its host."""
    check_annotations(PodSpec(annotations={ROOTFS: "block", "drupe.vmx": "x", "org.other": "y"}))
    with pytest.raises(InvalidArgument, match=r"unknown annotation drupe\.vm\.rootf") as refused:
        check_annotations(PodSpec(annotations={"drupe.vm.rootf": "block"}))
    assert ROOTFS in refused.value.hint


def test_a_disk_without_its_file_system_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    mounts = [{"type": "ext4", "source": str(disk), "destination": "/d", "options": []}]
    for content in (b"", b"x" * 4096):
        disk.write_bytes(content)
        (one,) = devices.wanted({"mounts": mounts}, "task")
        with pytest.raises(InvalidArgument, match=f"{disk} has no file system of the kind ext4"):
            devices.require_filesystem(one)
    disk.write_bytes(b"\0" * 1080 + b"\x53\xef" + b"\0" * 100)
    devices.require_filesystem(one)


def test_what_covers_a_part_of_proc() -> None:
    """What every host with systemd has mounted there covers nothing."""
    assert not share.masks(["/", "/proc", "/processes", "/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd"])
    assert share.masks(["/proc", "/proc/kcore"]) and share.masks(["/proc/sys"])


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

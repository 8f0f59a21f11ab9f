"""A root and a user of its own for a machine's program: what is left there, and what it cannot lead its host to."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from drupe.errors import HelperFailed, InvalidArgument
from drupe.hypervisors.cloud_hypervisor import CloudHypervisor
from drupe.hypervisors.contract import Disk, MachineConfig
from drupe.hypervisors.firecracker import Firecracker
from drupe.hypervisors.jails import Jail, Place, enter, libraries, name_in_jail, own_root
from drupe.linux.unix_peers import kill_peer
from framework import probes
from framework.leaks import wait_until

UID = 1_800_000_777
LOOKS = """b() { /bin/busybox "$@"; }
b touch /run/mine && echo made; b touch /other || echo refused; b mv /run /elsewhere || echo stays; b ls /"""


def busybox() -> str:
    probes.needs_program("busybox")
    return str(Path(str(probes.program("busybox"))).resolve())


def place_at(root: Path) -> Place:
    """As Cloud Hypervisor has it."""
    (root / "run").mkdir(parents=True)
    return Place(root, replace(own_root(root.parent), uid=UID, gid=UID))


@pytest.mark.root
def test_what_is_left_to_a_program(tmp_path: Path) -> None:
    """No user, capability, file or mount of the host's, and its own directory to write to."""
    probes.needs_root()
    program = busybox()
    argv = [*enter(tmp_path / "a/root", UID, program, libraries(Path(program)) or []), "sh", "-c"]
    said = subprocess.run(
        [*argv, LOOKS.replace("/bin/busybox", program)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "made" in said.stdout and "refused" in said.stdout and "stays" in said.stdout, said
    assert (
        {"dev", "run"} <= set(said.stdout.split("stays\n")[1].split()) <= {"dev", "run", "bin", "usr", "lib", "lib64"}
    )
    with subprocess.Popen([*argv, f"{program} sleep 100"], stdin=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: "sleep" in cmdline(process.pid), what="it runs")
            status = Path(f"/proc/{process.pid}/status").read_text()
            words = dict(line.split(":\t", 1) for line in status.splitlines())
            assert words["Uid"].split() == words["Gid"].split() == [str(UID)] * 4
            assert words["Groups"].split() == []
            assert {words[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
            assert words["NoNewPrivs"] == "1"
            mounts = Path(f"/proc/{process.pid}/mounts").read_text().split("\n")
            assert {line.split()[1] for line in mounts if line} == {"/", program, *(libraries(Path(program)) or [])}
        finally:
            process.kill()
    subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)  # no mount is left in it


def cmdline(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return "" if words[0].endswith(b"python") or b"jail_program" in b" ".join(words) else b" ".join(words).decode()


@pytest.mark.root
def test_a_file_that_is_written_is_a_device_of_its_own(tmp_path: Path) -> None:
    """Its owner stays who it was; nothing of it is left when the program has gone."""
    probes.needs_root()
    if not Path("/dev/loop-control").exists():
        pytest.skip("this kernel has no loop devices")
    disk = tmp_path / "disk"
    disk.write_bytes(b"before" + bytes(4090))
    disk.chmod(0o600)
    place = place_at(tmp_path / "root")
    assert place.given("d1", disk, read_only=False) == "/given/d1"
    node = place.given_at("d1")
    assert stat.S_ISBLK(node.stat().st_mode) and node.stat().st_uid == UID
    writes = f"import os; os.setresuid({UID}, {UID}, {UID}); os.write(os.open('{node}', os.O_WRONLY), b'after!')"
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o711)
    subprocess.run([sys.executable, "-c", writes], check=True)
    place.settle()
    wait_until(lambda: disk.read_bytes()[:6] == b"after!", what="what it wrote is in the file")
    number = node.stat().st_rdev
    backing = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/loop/backing_file")
    wait_until(lambda: not backing.exists() or str(disk) not in backing.read_text(), what="the device is free again")
    assert disk.stat().st_uid == 0
    place.drop("d1")
    assert not node.exists()


@pytest.mark.root
def test_what_is_only_read(tmp_path: Path) -> None:
    """Linked where everybody may read it; else a copy for that user."""
    probes.needs_root()
    place = place_at(tmp_path / "root")
    for mode, same in ((0o644, True), (0o600, False)):
        file = tmp_path / f"file-{mode:o}"
        file.write_text("content")
        file.chmod(mode)
        place.given(file.name, file)
        found = place.given_at(file.name)
        assert (found.samefile(file), found.read_text()) == (same, "content")
        assert same or found.stat().st_uid == UID
    with pytest.raises(InvalidArgument, match="into the jail"):
        place.given("none", tmp_path / "none")


@pytest.mark.root
def test_nothing_it_leaves_is_followed(tmp_path: Path) -> None:
    """Neither links, nor what would keep its reader waiting, nor a socket of somebody else's."""
    probes.needs_root()
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    place = place_at(tmp_path / "root")
    place.ours("link").symlink_to(secret)
    os.mkfifo(place.ours("pipe"))
    for name in ("link", "pipe", "none"):
        began = time.monotonic()
        with pytest.raises(OSError):
            place.read(name)
        assert time.monotonic() - began < 1
    for name in ("link", "pipe"):
        with pytest.raises(HelperFailed, match="left no file"):
            place.take(name, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()
    place.ours("file").write_text("its own")
    assert place.read("file") == "its own"
    place.take("file", tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "its own"


@pytest.mark.root
def test_a_process_of_another_user_is_not_killed(tmp_path: Path) -> None:
    """Whoever puts another's socket in the place of his own."""
    probes.needs_root()
    path = tmp_path / "sock"
    listens = f"import socket, time; s = socket.socket(1); s.bind({str(path)!r}); s.listen(); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", listens]) as process:
        try:
            wait_until(path.exists, what="it listens")
            wait_until(lambda: kill_peer(path, uid=UID) is False, what="it is asked")
            assert process.poll() is None
            assert kill_peer(path, uid=0)
            assert process.wait(10) == -9
        finally:
            process.kill()


def test_names_that_the_jailer_takes() -> None:
    assert name_in_jail("a1-b2") == "a1-b2"
    strange = ["a_b", "a-b_", "x" * 65, "x" * 64 + "y", "a_b_"]
    made = [name_in_jail(one) for one in strange]
    assert len(set(made)) == len(made)
    for one in made:
        assert len(one) <= 64 and set(one) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def test_the_jailers_place_is_named_by_the_program_itself(tmp_path: Path) -> None:
    """Releases have the version in the name, and a link beside it."""
    program = tmp_path / "firecracker-v1.16.0-x86_64"
    program.touch()
    (tmp_path / "firecracker").symlink_to(program)
    driver = Firecracker(str(tmp_path / "firecracker"), Jail(base=tmp_path / "jails"))
    config = MachineConfig("some_id", tmp_path, tmp_path, None, accelerator="kvm")
    launch = driver.prepare(config)
    assert launch.control.parent == tmp_path / "jails" / program.name / name_in_jail("some_id") / "root"
    assert launch.dirs == [tmp_path / "jails"]
    assert launch.argv[launch.argv.index("--id") + 1] == name_in_jail("some_id")


def test_a_guest_knows_a_disk_by_its_file_in_the_jail(tmp_path: Path) -> None:
    """Which is a copy where it is not everybody's to read."""
    program = tmp_path / "firecracker"
    program.touch()
    driver = Firecracker(str(program), Jail(uid=os.getuid(), gid=os.getgid(), base=tmp_path / "jails"))
    config = MachineConfig("id", tmp_path, tmp_path, None, accelerator="kvm")
    disk = Disk("root-1", tmp_path / "disk", read_only=True)
    disk.path.write_bytes(b"x")
    disk.path.chmod(0o600)
    root = driver.root(config)
    root.mkdir(parents=True)
    Place(root, Jail(uid=os.getuid(), gid=os.getgid())).given("root_1", disk.path)
    found = (root / "root_1").stat()
    assert found.st_ino != disk.path.stat().st_ino
    assert driver.serial(disk, config) == f"{found.st_dev}{found.st_rdev}{found.st_ino}"[:20]


def test_a_script_has_no_root_of_its_own(tmp_path: Path) -> None:
    """It needs more than its own file: the node says so then."""
    script = tmp_path / "cloud-hypervisor"
    script.write_text("#!/bin/sh\n")
    assert libraries(script) is None
    assert not CloudHypervisor(str(script)).jailed

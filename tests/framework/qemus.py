"""QEMU in tests: its program, started as the driver says, and the guest image's agent at the other end of its port."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

from drupe import guest
from drupe.hypervisors.contract import Launch, MachineConfig
from drupe.linux.unix_sockets import short_name
from drupe.rpc.containerd import task_v3_pb2 as task_pb
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.virtiofsd import find_virtiofsd, serving
from framework import machines
from framework.guestline import Line

MIB = 1 << 20


def config_of(directory: Path, machine_type: str) -> MachineConfig:
    """A machine without devices that boots the guest image of the tests."""
    image, size = guest.find(machines.built()), 256 * MIB
    plain = MachineConfig("m", directory, image.kernel, image.initrd, machine_type=machine_type)
    return replace(plain, memory_bytes=size, memory_max_bytes=size)


@contextmanager
def started(launch: Launch, console: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program of a machine, its sockets listening from the start; killed at the end."""
    with contextlib.ExitStack() as opened:
        fds = [opened.enter_context(listening(path)) for path in launch.listeners]
        if launch.empty is not None:
            launch.empty.mkdir(exist_ok=True)
        out = opened.enter_context(console.open("wb"))
        process = subprocess.Popen(
            handed_on(fds, launch.argv), pass_fds=fds, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def handed_on(fds: Sequence[int], argv: Sequence[str]) -> list[str]:
    """A command that has `fds` as its descriptors 3, 4, …"""
    moves = " ".join(f"{target}<&{fd} {fd}<&-" for target, fd in enumerate(fds, 3))
    return ["/bin/bash", "-c", f'exec "$@" {moves}', "bash", *argv]


@contextmanager
def listening(path: Path) -> Iterator[int]:
    """A descriptor, far from those that programs are given, of a socket there."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        with short_name(path) as name:
            sock.bind(name)
        sock.listen(4)
        fd = fcntl.fcntl(sock, fcntl.F_DUPFD, 100)
    try:
        yield fd
    finally:
        os.close(fd)


def fifo(path: Path, opened: contextlib.ExitStack) -> int:
    """A descriptor, far from those that programs are given, of a FIFO that is open for both ends."""
    os.mkfifo(path)
    own = os.open(path, os.O_RDWR)
    fd = fcntl.fcntl(own, fcntl.F_DUPFD, 100)
    os.close(own)
    opened.callback(os.close, fd)
    return fd


def virtiofsd(path: Path, shared: Path) -> subprocess.Popen[bytes]:
    """Serves a directory to one machine, at a socket."""
    program = find_virtiofsd()
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    with listening(path) as fd:
        words = serving(program, shared, legacy=version.startswith("virtiofsd version"))
        at = next(at for at, word in enumerate(words) if "modcaps=" in word)
        del words[at - (words[at - 1] == "-o") : at + 1]  # crun makes device nodes there
        argv = handed_on([fd], words)
        return subprocess.Popen(argv, pass_fds=[fd], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def make_disk(path: Path, root: Path) -> Path:
    """A disk with an ext4 file system that holds what is in `root`."""
    path.write_bytes(b"")
    os.truncate(path, 16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-d", root, path], check=True)
    return path


def make_root(root: Path) -> Path:
    """A root with a shell, for a container or a disk."""
    (root / "bin").mkdir(parents=True)
    for name in ("proc", "dev", "sys", "mnt"):
        (root / name).mkdir()
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    (root / "hello").write_text("hello from the host\n")
    return root


@asynccontextmanager
async def agent_of(config: MachineConfig) -> AsyncIterator[Line]:
    """A connection to the agent of a machine that runs, or boots still."""
    line = await Line.connect(config.dir / "agent.sock")
    try:
        yield line
    finally:
        await line.close()


async def run_in(line: Line, root: pb.GuestMount, script: str, *, name: str = "c") -> str:
    """What a shell script says in a container of the guest whose root is that mount."""
    process = {
        "args": ["/bin/sh", "-c", 'b() { /bin/busybox "$@"; }; ' + script],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "capabilities": {kind: ["CAP_NET_RAW"] for kind in ("bounding", "effective", "permitted")},
    }
    config = {
        "ociVersion": "1.0.2", "process": process | {"env": ["PATH=/bin"]}, "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                   {"destination": "/sys", "type": "sysfs", "source": "sysfs"}],
        "linux": {"namespaces": [{"type": "mount"}]},
    }  # fmt: skip
    put = pb.PutBundleRequest(
        id=name, config_json=json.dumps(config).encode(), rootfs=[root], writable_upper=root.type == "ext4"
    )
    bundle = (await line.guest("PutBundle", put)).bundle
    await line.task("Create", id=name, bundle=bundle, stdout="agent", stderr="agent")
    await line.task("Start", id=name)
    said = await line.output(name)
    errors = await line.output(name, error=True)
    ended: task_pb.WaitResponse = await line.task("Wait", id=name)
    await line.task("Delete", id=name)
    assert ended.exit_status == 0, errors.decode(errors="replace")
    return said.decode()

"""A guest image booted under QEMU without a daemon: the agent on its serial port, the monitor for hotplug."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf.any_pb2 import Any as Packed

from drupe import guest
from drupe.errors import DrupeError
from drupe.guest import build, kernel
from drupe.rpc.guest import guest_pb2 as pb
from framework import probes
from framework.guestline import Line
from framework.guests import cache

T = TypeVar("T")
MEMORY = "256M"
MAC = "52:54:00:aa:00:01"
APPLETS = (
    "sh",
    "echo",
    "cat",
    "nc",
    "sleep",
    "ip",
    "stty",
    "tail",
    "touch",
    "hostname",
    "ls",
    "mount",
    "date",
    "setsid",
)


def image(root: Path, *, form: build.Form = "initramfs") -> guest.Guest:
    """An image with this tree's agent, of the kernel that scripts/setup.sh --tests has fetched. Skips without it."""
    probes.needs_program("qemu-system-x86_64", "crun")
    packages = sorted((cache() / "kernels").glob("linux-image-*"))
    if not packages:
        pytest.skip("no kernel for guests (scripts/setup.sh --tests fetches one)")
    try:
        agent = build.find_agent()
    except DrupeError as error:
        pytest.skip(f"{error.message} ({error.hint})")
    chosen = kernel.from_debian(packages[-1].name, cache() / "kernels")
    build.build(root, build.Plan(chosen, agent, build.find_runtime(), form), "default")
    return guest.find(root)


def busybox_disk(directory: Path) -> Path:
    """An EROFS image of a root with busybox."""
    root = directory / "busybox"
    for name in ("bin", "proc", "dev", "tmp", "etc", "data", "sys"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copyfile(busybox, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    disk = directory / "busybox.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", disk, root], check=True, capture_output=True)
    return disk


def config(
    *argv: str, terminal: bool = False, memory_bytes: int = 0, namespaces: tuple[str, ...] = ("pid", "mount")
) -> bytes:
    """config.json of a container."""
    resources = {"memory": {"limit": memory_bytes}} if memory_bytes else {}
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
    ]
    return json.dumps({
        "ociVersion": "1.0.2",
        "process": process(*argv, terminal=terminal),
        "root": {"path": "rootfs"},
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in namespaces], "resources": resources},
    }).encode()  # fmt: skip


def process(*argv: str, terminal: bool = False) -> dict[str, Any]:
    """The part of config.json that an exec has too."""
    user = {"uid": 0, "gid": 0}
    return {"args": list(argv), "cwd": "/", "env": ["PATH=/bin"], "user": user, "terminal": terminal}


class GuestVm:
    """One machine. `do` runs a coroutine on its loop; `line` is the agent."""

    line: Line

    def __init__(self, directory: Path, image: guest.Guest, disk: Path, *, extra: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.sock, self.monitor = directory / "agent.sock", directory / "monitor.sock"
        self.console = directory / "console"
        self._runner = asyncio.Runner()
        started = time.monotonic()
        with self.console.open("wb") as console:
            self.process = subprocess.Popen(
                self._argv(image, disk, extra), stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        try:
            self.line = self.do(self._connect())
        except BaseException:
            self.close()
            raise
        self.booted_s = time.monotonic() - started

    def _argv(self, image: guest.Guest, disk: Path, extra: tuple[str, ...]) -> list[str]:
        root = _drive(guest.ROOT_SERIAL, image.rootfs, readonly=True) if image.rootfs else []
        # no_timer_check: a busy emulator is late with its timer, and the kernel would take it for broken
        append = "console=ttyS0 quiet panic=-1 no_timer_check"
        append += f" drupe.root={guest.ROOT_SERIAL}" if image.rootfs else ""
        return [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-M", "q35,usb=off,sata=off,smbus=off,graphics=off,accel=tcg", "-cpu", "max",
            "-smp", "1,sockets=2,cores=1,threads=1,maxcpus=2", "-m", f"{MEMORY},slots=2,maxmem=1G",
            "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", append, *root, "-serial", "stdio",
            "-device", "virtio-serial-pci,max_ports=2", "-device", "virtserialport,chardev=agent,name=drupe.agent",
            "-chardev", f"socket,id=agent,path={self.sock},server=on,wait=off", "-device", "virtio-rng-pci",
            *(word for port in (1, 2, 3) for word in ("-device", f"pcie-root-port,id=port{port},chassis={port}")),
            "-qmp", f"unix:{self.monitor},server=on,wait=off",
            "-netdev", "user,id=net0,ipv6=off", "-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile=",
            *_drive("busybox", disk, readonly=True), *extra,
        ]  # fmt: skip

    async def _connect(self) -> Line:
        async with asyncio.timeout(60):
            while not self.sock.exists():
                assert self.process.poll() is None, self.console.read_text(errors="replace")
                await asyncio.sleep(0.01)
        line = await Line.connect(self.sock)
        await line.guest("Check", pb.CheckRequest(protocol=1))
        return line

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def qmp(self, command: str, **arguments: Any) -> None:
        """A command of the monitor. AssertionError with what it answers instead."""
        reader, writer = await asyncio.open_unix_connection(str(self.monitor))
        try:
            await reader.readline()
            for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                writer.write(json.dumps(request).encode() + b"\n")
                while "return" not in (answer := json.loads(await reader.readline())):
                    assert "error" not in answer, answer
        finally:
            writer.close()
            await writer.wait_closed()

    async def start(self, name: str, spec: bytes, *, terminal: bool = False, stdin: bool = False) -> int:
        """A container on the busybox disk with a writable upper, started; its pid."""
        lower = pb.GuestMount(type="erofs", options=["ro"], device=pb.Device(disk_serial="busybox"))
        request = pb.PutBundleRequest(
            id=name, config_json=spec, rootfs=[lower], writable_upper=True, upper_size_bytes=8 << 20
        )
        put = await self.line.guest("PutBundle", request)
        streams = {"stdin": "agent" if stdin else "", "stdout": "agent", "stderr": "" if terminal else "agent"}
        created = await self.line.task("Create", id=name, bundle=put.bundle, terminal=terminal, **streams)
        await self.line.task("Start", id=name)
        return int(created.pid)

    async def run(self, name: str, *argv: str) -> tuple[int, str]:
        """A container's exit code, and its output with its errors; then it is gone."""
        await self.start(name, config(*argv))
        output = await self.line.output(name) + await self.line.output(name, error=True)
        ended = await self.line.task("Wait", id=name)
        await self.line.task("Delete", id=name)
        return ended.exit_status, output.decode()

    async def execute(self, name: str, *argv: str) -> tuple[int, str]:
        """A process in a container that runs: its exit code and its output."""
        spec = Packed(value=json.dumps(process(*argv)).encode())
        await self.line.task("Exec", id=name, exec_id="x", stdout="agent", spec=spec)
        await self.line.task("Start", id=name, exec_id="x")
        output = await self.line.output(name, "x")
        ended = await self.line.task("Wait", id=name, exec_id="x")
        await self.line.task("Delete", id=name, exec_id="x")
        return ended.exit_status, output.decode()

    def close(self) -> None:
        if hasattr(self, "line"):
            self.do(self.line.close())
        self._runner.close()
        self.process.kill()
        self.process.wait()


def _drive(name: str, file: Path, *, readonly: bool) -> list[str]:
    drive = f"if=none,id={name},file={file},format=raw,readonly={'on' if readonly else 'off'}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name},serial={name}"]


def entropy() -> bytes:
    return os.urandom(64)

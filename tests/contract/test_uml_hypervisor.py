"""User-mode Linux keeps the contract: a real kernel, on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from contract.hypervisor_suite import MIB, HypervisorSuite, Site, on_a_machine
from drupe.errors import HelperFailed
from drupe.hypervisors.contract import Device, Disk, Launch, Machine, MachineConfig, Nic
from drupe.hypervisors.uml import Uml, UmlMachine
from framework import netlab, probes, qemus

pytestmark = pytest.mark.root

INIT = """#!/busybox sh
b=/busybox
$b mkdir -p /proc /sys /dev
$b mount -t proc p /proc; $b mount -t sysfs s /sys; $b mount -t devtmpfs d /dev
exec 3<>/dev/ttyS0
$b stty raw -echo <&3
echo ready >&3
while read -r line <&3; do eval "$line" >&3 2>&1; echo "$?." >&3; done
"""


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with busybox, whose init does what the serial line says."""
    if shutil.which("linux.uml") is None:
        pytest.skip("User-mode Linux is not installed: apt-get install user-mode-linux")
    probes.needs_program("busybox", "cpio")
    root = tmp_path_factory.mktemp("guest")
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, root / "busybox")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    for name in ("dev", "proc", "sys"):
        (root / name).mkdir()
    archive = root.parent / "initrd"
    with archive.open("wb") as file:
        names = "".join(f"{p.relative_to(root)}\n" for p in root.rglob("*"))
        cpio = ["cpio", "--quiet", "-o", "-H", "newc"]
        subprocess.run(cpio, cwd=root, input=names.encode(), stdout=file, check=True)
    return archive


def session(leader: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = stat.read_text().rpartition(")")[2].split()
            if int(words[3]) == leader and words[0] not in "ZX":
                found.append(int(stat.parent.name))
    return found


class UmlSite(Site):
    def __init__(self, directory: Path, initrd: Path) -> None:
        super().__init__(directory)
        self.hypervisor = Uml()
        self.initrd = initrd
        (directory / "disk").write_bytes(b"hello from a disk".ljust(MIB, b"\0"))
        self.process: subprocess.Popen[bytes] | None = None

    def config(self) -> MachineConfig:
        memory = 96 * MIB
        return MachineConfig(
            "m", self.new_dir(), Path(), self.initrd, accelerator="native", memory_bytes=memory, memory_max_bytes=memory
        )

    @asynccontextmanager
    async def running(self, config: MachineConfig) -> AsyncIterator[None]:
        self._start(self.hypervisor.prepare(config), config.dir / "console")
        try:
            yield
        finally:
            await self.kill()

    def _start(self, launch: Launch, console: Path) -> None:
        with console.open("wb") as out, contextlib.ExitStack() as opened:
            fds = [qemus.fifo(path, opened) for path in launch.fifos]
            self.process = subprocess.Popen(
                qemus.handed_on(fds, launch.argv), pass_fds=fds, env=dict(launch.env), stdin=subprocess.DEVNULL,
                stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    async def kill(self) -> None:
        """All of it, as the end of its cgroup does."""
        assert self.process
        while found := session(self.process.pid):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            await asyncio.sleep(0.02)
        self.process.wait()

    async def end_from_inside(self, machine: Machine) -> None:
        async with Agent(machine) as agent:
            agent.send("/busybox poweroff -f")
            await asyncio.wait_for(machine.wait(), 20)  # its line hangs up when we do, and with it the guest's init


class Agent:
    """The other end of the serial line."""

    def __init__(self, machine: Machine) -> None:
        assert isinstance(machine, UmlMachine)
        self.machine = machine

    async def __aenter__(self) -> Agent:
        self.reader, self.writer = await asyncio.wait_for(Uml().open_line(self.machine.config), 20)
        await self._until("eady\n")  # the first byte of its greeting is the driver's
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    def send(self, line: str) -> None:
        self.writer.write(line.encode() + b"\n")

    async def ask(self, line: str) -> str:
        """What a command says in the guest."""
        self.send(line)
        return await self._until("0.\n")

    async def _until(self, end: str) -> str:
        said = ""
        while not said.endswith(end):
            said += (await asyncio.wait_for(self.reader.read(65536), 20)).decode()
        return said.removesuffix(end)


@pytest.fixture
def site(tmp_path: Path, initrd: Path) -> UmlSite:
    return UmlSite(tmp_path, initrd)


class TestUml(HypervisorSuite):
    @pytest.fixture(autouse=True)
    def host(self, site: UmlSite) -> Iterator[None]:
        with netlab.private_host():
            netlab.ip("tuntap add tap0 mode tap")
            yield

    def test_what_is_plugged_in_is_used_inside(self, site: UmlSite) -> None:
        """A disk at the start, another one later, and an interface, each seen by the guest and gone again."""
        devices: list[Device] = [
            Disk("more", site.directory / "disk", read_only=True),
            Nic("nic", "02:00:00:00:00:07", tap="tap0"),
        ]

        async def scenario(machine: Machine) -> None:
            async with Agent(machine) as agent:
                assert await agent.ask("/busybox head -c 5 /dev/ubda") == "hello"
                for device in devices:
                    await machine.add(device)
                assert await agent.ask("/busybox head -c 17 /dev/ubdb") == "hello from a disk"
                assert await agent.ask("/busybox cat /sys/class/net/vec0/address") == "02:00:00:00:00:07\n"
                for device in devices:
                    await machine.remove(device.id, timeout_s=10)
                assert "ubdb" not in await agent.ask("/busybox ls /sys/block")

        on_a_machine(site, scenario, replace(site.config(), disks=[Disk("first", site.directory / "disk")]))

    def test_the_line_outlives_its_other_end(self, site: UmlSite) -> None:
        """As a daemon that goes and comes back; what the guest says in between is not lost."""

        async def scenario(machine: Machine) -> None:
            async with Agent(machine) as agent:
                assert await agent.ask("/busybox echo one") == "one\n"
                agent.send("/busybox sleep 1; /busybox echo two")
            await asyncio.sleep(1.5)
            for line in ("two", "three"):
                reader, writer = await site.hypervisor.open_line(agent.machine.config)
                if line == "three":
                    writer.write(b"/busybox echo three\n")
                assert await asyncio.wait_for(reader.readuntil(b"0.\n"), 20) == f"{line}\n0.\n".encode()
                writer.close()
                await writer.wait_closed()

        on_a_machine(site, scenario)

    def test_a_refusal_keeps_its_words(self, site: UmlSite) -> None:
        async def scenario(machine: Machine) -> None:
            with pytest.raises(HelperFailed, match="Couldn't determine size"):
                await machine.add(Disk("x", Path("/no/disk")))

        on_a_machine(site, scenario)

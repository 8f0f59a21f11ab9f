"""QEMU keeps the contract: real machines of both its types, by emulation, with the guest image's agent inside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from contract.hypervisor_suite import TIMEOUT_S, HypervisorSuite, Site, can, on_a_machine
from drupe.errors import DeadlineExceeded, DrupeError, Unavailable
from drupe.hypervisors.contract import Device, Disk, Machine, MachineConfig, Nic, Share
from drupe.hypervisors.owners import uid_of
from drupe.hypervisors.qemu.driver import Qemu
from drupe.linux.tuntap import open_tap
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.watching import is_stopped
from framework import machines, netlab, probes, qemus
from framework.leaks import wait_until
from framework.vhostuser import Backend

pytestmark = pytest.mark.root
MAC, OTHER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


class QemuSite(Site):
    """Devices that it hands out are closed and ended with it."""

    def __init__(self, directory: Path, machine_type: str) -> None:
        super().__init__(directory)
        self.hypervisor = Qemu()
        self.machine_type = machine_type
        self.root = qemus.make_root(directory / "root")
        self.disk = qemus.make_disk(directory / "disk", self.root)
        self.process: subprocess.Popen[bytes] | None = None
        self.tap = -1
        self.opened = contextlib.AsyncExitStack()

    def config(self) -> MachineConfig:
        return qemus.config_of(self.new_dir(), self.machine_type)

    @asynccontextmanager
    async def running(self, config: MachineConfig) -> AsyncIterator[None]:
        with qemus.started(self.hypervisor.prepare(config), config.dir / "console") as self.process:
            try:
                yield
            finally:
                await self.opened.aclose()

    async def booted(self, config: MachineConfig) -> None:
        self.line = await self.opened.enter_async_context(qemus.agent_of(config))
        await self.line.guest("Check", pb.CheckRequest(protocol=1))

    async def kill(self) -> None:
        assert self.process
        self.process.kill()

    async def end_from_inside(self, machine: Machine) -> None:
        await self.line.guest("Shutdown", pb.ShutdownRequest(timeout_ms=5000))

    def to_save(self, config: MachineConfig, directory: Path) -> MachineConfig:
        memory = directory / "memory"
        memory.touch()
        os.truncate(memory, config.memory_bytes)
        return replace(config, memory_file=memory)

    def device(self, word: str) -> Device:
        if word == "hotplug-disk":
            return Disk("extra", self.disk, read_only=True)
        if word == "hotplug-nic":
            if self.tap < 0:
                self.tap = open_tap("tap0")
                self.opened.callback(self.close_tap)
            return Nic("nic0", MAC, descriptor=self.tap)
        return self.share()

    def close_tap(self) -> None:
        os.close(self.tap)
        self.tap = -1

    def share(self) -> Share:
        """One that a new virtiofsd serves."""
        self._number += 1
        socket = self.directory / f"fs{self._number}"
        process = qemus.virtiofsd(socket, self.root)
        self.opened.callback(process.wait)
        self.opened.callback(process.kill)
        return Share("share0", "tag0", self.root, socket=socket)


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    """A network of its own, with a tap."""
    machines.needs_machines()
    with netlab.private_host():
        netlab.ip("tuntap add tap0 mode tap vnet_hdr")
        netlab.ip("address add 192.0.2.1/24 dev tap0")
        netlab.ip("address add 2001:db8::1/64 dev tap0 nodad")
        netlab.ip("link set tap0 up")
        yield


class MachineSuite(HypervisorSuite):
    """What machines of both types show with a guest inside."""

    def test_the_agent_is_there_again_after_each_connection(self, site: QemuSite) -> None:
        """Its port outlives the daemon's end of the line, and what was left half said on it."""
        config = site.config()

        async def scenario(_: Machine) -> None:
            boots = set()
            for _ in range(3):
                async with qemus.agent_of(config) as line:
                    boots.add((await line.guest("Check", pb.CheckRequest(protocol=1))).boot_id)
                _, writer = await asyncio.open_unix_connection(str(config.dir / "agent.sock"))
                writer.write(b"\0\0\xff\xff half a frame")
                await writer.drain()
                writer.close()
            assert len(boots) == 1

        on_a_machine(site, scenario, config)

    def test_devices_of_the_start_are_used_inside(self, site: QemuSite) -> None:
        """A disk, an interface that the host reaches, and a shared directory that both ends write to."""
        shares = [site.share()] if can(site, "virtiofs") else []
        disks, nics = [Disk("root", site.disk, read_only=True)], [Nic("nic0", MAC, tap="tap0")]
        config = replace(site.config(), shared_memory=bool(shares), disks=disks, nics=nics, shares=shares)

        async def scenario(_: Machine) -> None:
            disk = pb.GuestMount(type="ext4", options=["ro"], device=pb.Device(disk_serial="root"))
            assert await qemus.run_in(site.line, disk, "b cat /hello") == "hello from the host\n"
            await reached(site)
            for share in shares:
                shared = pb.GuestMount(type="virtiofs", source=share.tag)
                said = await qemus.run_in(site.line, shared, "b cat /hello; echo and back >/answer", name="s")
                assert said == "hello from the host\n"
                assert (site.root / "answer").read_text() == "and back\n"

        on_a_machine(site, scenario, config, with_guest=True)

    def test_interfaces_of_several_queues_and_of_other_processes(self, site: QemuSite) -> None:
        """One has as many queues as the machine has processors, and is reached by the host; what is behind the other is
        a process that speaks vhost-user, and answers the guest."""
        netlab.ip("tuntap del tap0 mode tap")
        netlab.ip("tuntap add tap0 mode tap vnet_hdr multi_queue")
        netlab.ip("address add 192.0.2.1/24 dev tap0")
        netlab.ip("address add 2001:db8::1/64 dev tap0 nodad")
        netlab.ip("link set tap0 up")
        config = replace(site.config(), shared_memory=True, processors=2, processors_max=2)
        served = Backend(site.directory / "vhu.sock", "203.0.113.1")
        site.opened.callback(served.close)
        nics = [Nic("nic0", MAC, tap="tap0", queues=2), Nic("nic1", OTHER_MAC, socket=site.directory / "vhu.sock")]
        config = replace(config, nics=nics, disks=[Disk("root", site.disk, read_only=True)])

        async def scenario(_: Machine) -> None:
            await reached(site)
            face = pb.Interface(device=pb.Device(mac=OTHER_MAC), name="eth1", mac=OTHER_MAC, mtu=1400, up=True)
            face.addresses.append("203.0.113.7/24")
            await site.line.guest("SetInterfaces", pb.SetInterfacesRequest(interfaces=[face]))
            disk = pb.GuestMount(type="ext4", options=["ro"], device=pb.Device(disk_serial="root"))
            script = "b ls /sys/class/net/eth0/queues; b ping -c 3 -W 20 203.0.113.1"
            said = await qemus.run_in(site.line, disk, script)
            assert said.split()[:4] == ["rx-0", "rx-1", "tx-0", "tx-1"]
            assert " 0% packet loss" in said and served.pinged == 3

        on_a_machine(site, scenario, config, with_guest=True)

    def test_a_paused_guest_stands_still(self, site: QemuSite) -> None:
        config = site.config()

        async def scenario(machine: Machine) -> None:
            before = await site.line.guest("Metrics")
            await machine.pause()
            asked = asyncio.ensure_future(site.line.guest("Metrics"))
            assert not (await asyncio.wait({asked}, timeout=0.5))[0]
            await machine.resume()
            assert (await asked).uptime_s >= before.uptime_s

        on_a_machine(site, scenario, config, with_guest=True)

    def test_a_program_that_stands_still_is_found_out(self, site: QemuSite) -> None:
        """SIGSTOP ends nothing: its state tells at once, and a call is over at its deadline."""

        async def scenario(machine: Machine) -> None:
            assert site.process
            site.process.send_signal(signal.SIGSTOP)
            for _ in range(100):
                if is_stopped(site.process.pid):
                    break
                await asyncio.sleep(0.01)
            assert is_stopped(site.process.pid)
            with pytest.raises(DeadlineExceeded, match="did not answer"):
                await machine.quit(timeout_s=0.3)

        on_a_machine(site, scenario)

    def test_it_has_given_up_its_rights(self, site: QemuSite) -> None:
        """Another user, no capability, a filter, an empty root."""
        config = site.config()

        async def scenario(machine: Machine) -> None:
            assert site.process
            await machine.status()
            of = Path(f"/proc/{site.process.pid}")
            status = dict(line.split(":\t", 1) for line in (of / "status").read_text().splitlines())
            assert status["Uid"].split() == [str(uid_of(config.id))] * 4
            assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
            assert status["Seccomp"] == "2"
            assert (of / "root").readlink() == config.dir / "empty"

        on_a_machine(site, scenario, config)

    def test_a_kernel_that_panics_ends_the_machine(self, site: QemuSite) -> None:
        """Its words are on the console."""
        config = replace(site.config(), initrd=None)

        async def scenario(machine: Machine) -> None:
            assert await asyncio.wait_for(machine.wait(), TIMEOUT_S) in ("panic", "reset")
            assert "Kernel panic" in (config.dir / "console").read_text(errors="replace")

        on_a_machine(site, scenario, config)


async def reached(site: QemuSite) -> None:
    """The guest's interface gets addresses, and answers the host: nothing listens there, which only it can say."""
    face = pb.Interface(device=pb.Device(mac=MAC), name="eth0", mac=MAC, mtu=1400, up=True)
    face.addresses.extend(["192.0.2.7/24", "2001:db8::7/64"])
    await site.line.guest("SetInterfaces", pb.SetInterfacesRequest(interfaces=[face]))
    for family, address in ((socket.AF_INET, "192.0.2.7"), (socket.AF_INET6, "2001:db8::7")):
        with socket.socket(family) as sock:
            sock.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, (address, 7)), 20)


def resident_kib(site: QemuSite) -> int:
    """What of the guest's memory is in the host's."""
    assert site.process
    return mapped(site.process.pid, Path("/memfd:memory-backend-memfd"))["Rss"]


# what a machine without PCI and ACPI does in another way
OF_A_MICROVM = {
    "test_every_ability_has_an_answer",
    "test_prepare_touches_nothing",
    "test_what_it_cannot_do_is_refused_at_once",
    "test_boot_and_status",
    "test_a_guest_that_ends_is_told_apart",
    "test_devices_come_and_go",
    "test_sizes",
    "test_save_and_start_from_it",
    "test_devices_of_the_start_are_used_inside",
}


class TestMicrovm(MachineSuite):
    @pytest.fixture
    def site(self, request: pytest.FixtureRequest, tmp_path: Path) -> QemuSite:
        if request.function.__name__ not in OF_A_MICROVM:
            probes.needs_full("all that the other type does, by microvm")
        return QemuSite(tmp_path, "microvm")


class TestQ35(MachineSuite):
    @pytest.fixture
    def site(self, tmp_path: Path) -> QemuSite:
        return QemuSite(tmp_path, "q35")

    def test_what_is_plugged_in_is_used_inside(self, site: QemuSite) -> None:
        """By a second connection, as of a daemon that came back; and it goes again."""
        config = replace(site.config(), shared_memory=True)

        async def scenario(first: Machine) -> None:
            await first.close()
            machine = await site.hypervisor.connect(config, timeout_s=TIMEOUT_S)
            disk, nic, share = (site.device(f"hotplug-{what}") for what in ("disk", "nic", "share"))
            assert isinstance(share, Share)
            for device in (disk, nic, share):
                await machine.add(device)
            mount = pb.GuestMount(type="ext4", options=["ro"], device=pb.Device(disk_serial=disk.id))
            assert await qemus.run_in(site.line, mount, "b cat /hello", name="d") == "hello from the host\n"
            mount = pb.GuestMount(type="virtiofs", source=share.tag)
            assert await qemus.run_in(site.line, mount, "b cat /hello", name="s") == "hello from the host\n"
            await reached(site)
            for device in (disk, nic, share):
                await machine.remove(device.id, timeout_s=30)
            for named in (pb.Device(disk_serial=disk.id), pb.Device(mac=MAC)):
                gone = pb.AwaitDeviceRequest(device=named, gone=True, timeout_ms=20000)
                await site.line.guest("AwaitDevice", gone)
            await machine.close()

        on_a_machine(site, scenario, config, with_guest=True)

    async def has_its_size(self, site: Site, machine: Machine, config: MachineConfig) -> None:
        """In the guest, too: processors and memory, more and less again; below the first size by the balloon."""
        assert isinstance(site, QemuSite)
        line, first, more = site.line, config.memory_bytes, config.memory_max_bytes

        async def given(processors: int, memory_bytes: int) -> tuple[int, int]:
            await machine.resize(processors=processors, memory_bytes=memory_bytes)
            await line.guest("SetOnline", pb.SetOnlineRequest(processors=processors, timeout_ms=30000))
            told = await line.guest("Check", pb.CheckRequest(protocol=1))
            return told.processors, told.memory_bytes

        # the second processor is there already: by emulation QEMU 7.2 aborts where one is plugged in twice
        processors, usable = await given(2, first)
        assert processors == 2
        assert await given(2, more) == (2, usable + more - first)
        assert await given(1, first) == (1, usable)
        free = (await line.guest("Metrics")).memory_available_bytes
        await machine.resize(memory_bytes=first - 64 * qemus.MIB)
        while (await machine.metrics())["balloon_actual_bytes"] != first - 64 * qemus.MIB:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert (await line.guest("Metrics")).memory_available_bytes < free - 48 * qemus.MIB

    def test_a_disk_that_another_process_serves(self, site: QemuSite) -> None:
        """vhost-user: plugged in, read, and gone again; and one that nobody serves is refused."""
        probes.needs_program("qemu-storage-daemon")
        config, path = replace(site.config(), shared_memory=True), site.directory / "blk.sock"
        export = f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={path},writable=off"
        node = f"driver=file,node-name=disk,filename={site.disk},read-only=on"
        server = subprocess.Popen(["qemu-storage-daemon", "--blockdev", node, "--export", export])
        disk = Disk("served", Path(), socket=path)

        async def scenario(machine: Machine) -> None:
            with pytest.raises(Unavailable, match="nothing serves"):
                await machine.add(Disk("nobody", Path(), socket=site.directory / "nowhere"))
            await machine.add(disk)
            # its serial is what the other process says
            mount = pb.GuestMount(type="ext4", options=["ro"], device=pb.Device(disk_serial="vhost_user_blk"))
            assert await qemus.run_in(site.line, mount, "b cat /hello") == "hello from the host\n"
            await machine.remove(disk.id, timeout_s=30)

        try:
            wait_until(path.exists, what="it is served")
            on_a_machine(site, scenario, config, with_guest=True)
        finally:
            server.kill()
            server.wait()

    def test_freed_memory_is_given_back(self, site: QemuSite) -> None:
        """Free-page reporting: what a guest has used and freed is the host's again, though nobody asked for it."""
        config = replace(site.config(), disks=[Disk("root", site.disk, read_only=True)])

        async def scenario(_: Machine) -> None:
            root = pb.GuestMount(type="ext4", options=["ro"], device=pb.Device(disk_serial="root"))
            fill = "b mount -t tmpfs t /mnt; b fallocate -l 104857600 /mnt/full; b sleep 1"
            filling = asyncio.ensure_future(qemus.run_in(site.line, root, fill))
            seen = [resident_kib(site)]
            while not filling.done():  # it may be given back before the program's end is told
                await asyncio.sleep(0.1)
                seen.append(resident_kib(site))
            await filling
            for _ in range(200):
                if resident_kib(site) < max(seen) - 80_000:
                    return
                await asyncio.sleep(0.1)
            pytest.fail("what was freed is still the host's cost")

        on_a_machine(site, scenario, config, with_guest=True)

    def test_saved_machines_share_what_was_saved(self, site: QemuSite) -> None:
        """Copy on write: two go on from one, each for itself, and what was saved stays as it was."""
        saved = site.directory / "saved"
        saved.mkdir()
        config = site.to_save(site.config(), saved)
        boots: list[str] = []

        async def save(machine: Machine) -> None:
            boots.append((await site.line.guest("Check", pb.CheckRequest(protocol=1))).boot_id)
            await site.line.close()
            await machine.pause()
            await machine.save(saved)

        async def go_on(machine: Machine) -> None:
            boots.append((await site.line.guest("Check", pb.CheckRequest(protocol=1))).boot_id)
            assert site.process
            kinds = mapped(site.process.pid, saved / "memory")
            assert kinds["Rss"] > kinds["Anonymous"] > 0

        on_a_machine(site, save, config, with_guest=True)
        files = {path: path.read_bytes() for path in saved.iterdir()}
        for _ in range(2):
            on_a_machine(site, go_on, replace(site.config(), saved=saved, share_memory=True), with_guest=True)
        assert len(boots) == 3
        assert len(set(boots)) == 1
        assert {path: path.read_bytes() for path in saved.iterdir()} == files

    def test_a_state_that_is_no_state(self, site: QemuSite) -> None:
        saved = site.directory / "saved"
        saved.mkdir()
        (saved / "devices").write_bytes(b"what is this")
        with pytest.raises(DrupeError, match=r"cannot be loaded|has gone"):
            on_a_machine(site, lambda machine: machine.pause(), replace(site.config(), saved=saved))


def mapped(pid: int, file: Path) -> dict[str, int]:
    """kB of a file in a process's memory, by the words of proc_pid_smaps(5)."""
    found: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            inside = line.endswith((f" {file}", f" {file} (deleted)"))
        elif inside and words[-1] == "kB":
            found[words[0][:-1]] = found.get(words[0][:-1], 0) + int(words[1])
    return found

"""The hypervisors that no package of Debian's has, where they are installed: their own programs judge the drivers.

Whatever /dev/kvm is worth, they are started as the node starts them (their own user, root and network), are configured
and asked; where a guest's kernel runs on it, a guest with its agent takes part too. `make test-nested-hypervisors`
makes such a host by emulation.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from contract.hypervisor_suite import MIB, HypervisorSuite, Site, can, on_a_machine
from drupe import guest
from drupe.hypervisors.contract import Device, Disk, Machine, MachineConfig, Nic, Share
from drupe.hypervisors.owners import uid_of
from drupe.linux.tuntap import make_lasting, open_tap
from drupe.resources.kvm import DEADLINE_S, PROBE, read_fault
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.hypervisors import open_hypervisor
from framework import machines, netlab, probes, qemus
from framework.daemon import Daemon
from framework.guestline import Line
from framework.leaks import wait_until

pytestmark = pytest.mark.root
MAC = "02:00:00:00:00:01"
BOOTS_WITHIN_S = 300.0  # under two emulations


def kvm_fault() -> str:
    """Why no guest runs here; "" where one does."""
    try:
        done = subprocess.run(PROBE, capture_output=True, text=True, timeout=10 * DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        return "a loop did not come to its end"
    return read_fault(done.stdout)


class InstalledSite(Site):
    """As a node has it, below a root of its own."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(directory)
        self.name = name
        self.root = directory / "node"
        self.root.mkdir()
        self.hypervisor = open_hypervisor(name, root=self.root)
        self.disk = qemus.make_disk(directory / "disk", qemus.make_root(directory / "root"))
        self.image = guest.find(machines.built())
        self.process: subprocess.Popen[bytes] | None = None
        self.opened = contextlib.AsyncExitStack()
        self.tap = -1

    def config(self) -> MachineConfig:
        self._machine = f"real-{self._number}"
        plain = MachineConfig(self._machine, self.new_dir(), self.image.kernel, self.image.initrd, accelerator="kvm")
        return replace(plain, memory_bytes=256 * MIB, memory_max_bytes=256 * MIB)

    @asynccontextmanager
    async def running(self, config: MachineConfig) -> AsyncIterator[None]:
        launch = self.hypervisor.prepare(config)
        for path in launch.dirs:
            path.mkdir(parents=True, exist_ok=True)
        self.hypervisor.furnish(config)
        self.console = config.dir / "console"
        self.process = self.started(launch.argv)
        try:
            yield
        except BaseException:
            print(self.console.read_text(errors="replace")[-4000:], file=sys.stderr)
            raise
        finally:
            await self.opened.aclose()
            self.process.kill()
            self.process.wait()
            if self.tap >= 0:
                os.close(self.tap)
                self.tap = -1

    def started(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Without capabilities, where it does not give them up itself."""
        bare = [] if getattr(self.hypervisor, "jailed", False) else ["--bounding-set=-all", "--inh-caps=-all"]
        with self.console.open("wb") as out:
            return subprocess.Popen(
                ["setpriv", "--no-new-privs", *bare, "--", *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    async def booted(self, config: MachineConfig) -> None:
        if fault := kvm_fault():
            pytest.skip(f"no guest runs here: {fault}")
        self.line = await Line.over(*await self.hypervisor.open_line(config))
        self.opened.push_async_callback(self.line.close)
        await self.line.guest("Check", pb.CheckRequest(protocol=1))

    async def kill(self) -> None:
        assert self.process
        os.kill(self.process.pid, signal.SIGKILL)

    async def end_from_inside(self, machine: Machine) -> None:
        await self.line.guest("Shutdown", pb.ShutdownRequest(timeout_ms=5000, reboot=self.hypervisor.resets_to_end))

    def device(self, word: str) -> Device:
        if word == "hotplug-disk":
            return Disk("extra", self.disk, read_only=True)
        if word == "hotplug-nic":
            if self.hypervisor.opens_taps:
                return Nic("nic0", MAC, tap="tap0")
            if self.tap < 0:
                self.tap = open_tap("tap0")
            return Nic("nic0", MAC, descriptor=self.tap)
        return super().device(word)

    def cold_nic(self, config: MachineConfig, ours: contextlib.ExitStack) -> Nic:
        """One that is there from the start, on a tap that lasts, or on an open one of two queues."""
        queues = 1 if self.hypervisor.opens_taps else 2
        fds = [open_tap("tap1", queues=queues) for _ in range(queues)]
        make_lasting(fds[0], owner=self.hypervisor.owner(config.id))
        netlab.ip("link set tap1 up")
        for fd in fds:
            if self.hypervisor.opens_taps:
                os.close(fd)
            else:
                ours.callback(os.close, fd)
        if self.hypervisor.opens_taps:
            return Nic("nic1", MAC, tap="tap1")
        return Nic("nic1", MAC, descriptor=fds[0], more=tuple(fds[1:]), mtu=1400)

    def share(self, config: MachineConfig, ours: contextlib.ExitStack) -> Share:
        socket = self.hypervisor.share_socket(config)
        socket.parent.mkdir(parents=True, exist_ok=True)
        process = qemus.virtiofsd(socket, self.directory / "root")
        ours.callback(process.wait)
        ours.callback(process.kill)
        return Share("share0", "tag0", self.directory / "root", socket=socket)


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    """A network of its own."""
    with netlab.private_host():
        yield


class InstalledSuite(HypervisorSuite):
    """What the programs themselves are asked."""

    name = ""
    unfiltered: frozenset[str] = frozenset()  # threads without a filter

    @pytest.fixture
    def site(self, tmp_path: Path) -> InstalledSite:
        machines.needs_machines()
        probes.needs_program(self.name)
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            pytest.skip("there is no /dev/kvm")
        return InstalledSite(tmp_path, self.name)

    def test_what_it_may_on_the_host(self, site: InstalledSite) -> None:
        """A user and a root of its own with nothing mounted from elsewhere but its libraries, no capability, and a
        filter on every thread that has to do with its guest."""
        config = site.config()

        async def scenario(machine: Machine) -> None:
            assert site.process
            proc, uid = Path(f"/proc/{site.process.pid}"), str(uid_of(config.id))
            words = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
            assert words["Uid"].split() == words["Gid"].split() == [uid] * 4
            assert {words[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
            assert (words["NoNewPrivs"], words["Groups"].split()) == ("1", [])
            mounts = {line.split()[1] for line in (proc / "mounts").read_text().splitlines()}
            assert all(mount == "/" or Path(mount).is_file() for mount in mounts), mounts
            filters = {}
            for task in (proc / "task").iterdir():
                said = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
                filters[said["Name"]] = said["Seccomp"]
            assert {name for name, mode in filters.items() if mode != "2"} <= self.unfiltered, filters

        on_a_machine(site, scenario, config)

    def test_devices_of_the_start(self, site: InstalledSite) -> None:
        """Disks that are read and written, an interface and, where it can, a shared directory, under its own user."""
        config = replace(site.config(), processors=2, processors_max=2, shared_memory=can(site, "virtiofs"))
        written = site.directory / "written"
        written.write_bytes(bytes(MIB))
        disks = [Disk("root", site.disk, read_only=True), Disk("data", written)]
        with contextlib.ExitStack() as ours:
            nics = [site.cold_nic(config, ours)]
            shares = [site.share(config, ours)] if can(site, "virtiofs") else []

            async def scenario(machine: Machine) -> None:
                assert (await machine.status()).state == "running"

            on_a_machine(site, scenario, replace(config, disks=disks, nics=nics, shares=shares))


class TestFirecracker(InstalledSuite):
    name = "firecracker"


class TestCloudHypervisor(InstalledSuite):
    name = "cloud-hypervisor"
    unfiltered = frozenset({"cloud-hyperviso"})  # the first one, which waits for the others' end

    def test_save_and_start_from_it(self, site: Site) -> None:
        if fault := kvm_fault():
            pytest.skip(f"a KVM that runs no guest may not save a processor either: {fault}")
        super().test_save_and_start_from_it(site)


class TestStratoVirt(InstalledSuite):
    name = "stratovirt"


@pytest.fixture(params=("firecracker", "cloud-hypervisor", "stratovirt"))
def node(request: pytest.FixtureRequest, fresh_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon whose machines that program runs."""
    probes.needs_program(request.param)
    machines.needs_machines()
    if fault := kvm_fault():
        pytest.skip(f"no guest runs here: {fault}")
    machines.make_root(fresh_daemon.root)
    settings = fresh_daemon.root.parent / "config.toml"
    settings.write_text(f'[kinds.vm]\nhypervisor = "{request.param}"\ntemplate = false\nagent_timeout_s = 300\n')
    fresh_daemon.kill()
    fresh_daemon.start(env={"DRUPE_CONFIG": str(settings)})
    yield fresh_daemon
    fresh_daemon.delete_pods()


@pytest.mark.timeout(900)
def test_a_pod(node: Daemon) -> None:
    """As a user meets it: on the bridge, reached by the host, paused, and stopped in good time."""
    serves = "echo from a machine >/tmp/index.html; exec httpd -f -p 80 -h /tmp"
    said = node.command(
        "run", "-d", "--name", "real", "--sandbox", "vm", "busybox", "sh", "-c", serves, timeout_s=BOOTS_WITHIN_S
    )
    assert said.returncode == 0, said.stderr + node.log.read_text()[-2000:]

    def out(*argv: str) -> str:
        return node.command(*argv, check=True, timeout_s=BOOTS_WITHIN_S).stdout.strip()

    assert out("exec", "real", "uname", "-r") == json.loads(out("guest", "inspect", "default"))[0]["release"]
    pod = machines.pod_of(node, "real")
    address = pod["endpoints"][0]["ipv4"].partition("/")[0]
    wait_until(
        lambda: "from a machine" in node.on_host("busybox", "wget", "-T5", "-qO-", f"http://{address}").stdout,
        what="the host reaches it",
        timeout_s=60,
    )
    out("pause", "real")
    out("unpause", "real")
    assert out("exec", "real", "echo", "on it goes") == "on it goes"
    print(json.dumps(pod, indent=1), file=sys.stderr)
    began = time.monotonic()
    out("stop", "-t", "20", "real")
    assert time.monotonic() - began < BOOTS_WITHIN_S

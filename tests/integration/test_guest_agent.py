"""The agent as a machine's first process: one boot under QEMU, and all that the host can ask of it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator

import pytest
from google.protobuf.any_pb2 import Any as Packed

from drupe.errors import InvalidArgument, InvalidState, NotFound
from drupe.rpc.containerd import cgroup2_metrics_pb2
from drupe.rpc.guest import guest_pb2 as pb
from framework import guestvm, tars
from framework.guestline import Line
from framework.guestvm import MAC, GuestVm, config, process

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

INTERFACE = pb.Interface(
    device=pb.Device(mac=MAC), name="pod0", mac=MAC, mtu=1400, addresses=["10.0.2.15/24", "fd00:7::2/64"], up=True
)
ROUTES = [
    pb.Route(gateway="10.0.2.2", interface="pod0"),
    pb.Route(destination="10.9.0.0/16", interface="pod0", source="10.0.2.15", metric=7),
    pb.Route(destination="::/0", gateway="fd00:7::1", interface="pod0"),
]


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestVm]:
    """One machine for all tests here, set up as a pod."""
    directory = tmp_path_factory.mktemp("guest")
    image = guestvm.image(directory / "root")
    data = directory / "data.img"
    with data.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", data], check=True)
    vm = GuestVm(directory, image, guestvm.busybox_disk(directory))
    try:
        vm.do(vm.line.guest("Setup", setup()))
        yield vm
    finally:
        vm.close()


def setup() -> pb.SetupRequest:
    return pb.SetupRequest(
        hostname="pod-one", machine_id="1" * 32, resolv_conf=b"nameserver 10.0.2.3\n", hosts=b"127.0.0.1 localhost\n",
        sysctls={"net.ipv4.ip_unprivileged_port_start": "80"}, interfaces=[INTERFACE], routes=ROUTES,
        clock_unix_ns=time.time_ns(), entropy=guestvm.entropy(), shm_size_bytes=1 << 20,
    )  # fmt: skip


def test_it_says_who_it_is_and_refuses_another_protocol(vm: GuestVm) -> None:
    said = vm.do(vm.line.guest("Check", pb.CheckRequest(protocol=1)))
    assert (said.protocol, said.is_set_up, said.processors) == (1, True, 1)
    assert {"freeze", "cgroup2", "overlay"} <= set(said.features)
    with pytest.raises(InvalidState, match="speaks protocol 1, the host protocol 7: build the guest anew"):
        vm.do(vm.line.guest("Check", pb.CheckRequest(protocol=7)))
    with pytest.raises(InvalidState, match="set up already"):
        vm.do(vm.line.guest("Setup", setup()))


def test_interfaces_and_routes_are_as_they_were_asked_for(vm: GuestVm) -> None:
    said = vm.do(vm.line.guest("ListInterfaces"))
    (pod0,) = [one for one in said.interfaces if one.name == "pod0"]
    assert (pod0.mac, pod0.mtu, pod0.up) == (MAC, 1400, True)
    assert set(INTERFACE.addresses) <= set(pod0.addresses)
    routes = {(one.destination, one.gateway, one.interface, one.source, one.metric % 1024) for one in said.routes}
    assert routes == {
        ("0.0.0.0/0", "10.0.2.2", "pod0", "", 0), ("10.9.0.0/16", "", "pod0", "10.0.2.15", 7),
        ("::/0", "fd00:7::1", "pod0", "", 0),
    }  # fmt: skip
    with pytest.raises(InvalidArgument, match=r"route 10\.1\.0\.0/33"):
        vm.do(vm.line.guest("SetRoutes", pb.SetRoutesRequest(routes=[pb.Route(destination="10.1.0.0/33")])))
    code, output = vm.do(vm.run("net", "ip", "route"))
    assert code == 0
    assert "default via 10.0.2.2 dev pod0" in output


def test_a_container_has_a_writable_root_over_a_shared_disk(vm: GuestVm) -> None:
    code, output = vm.do(vm.run("root", "sh", "-c", "touch /new && ls / && hostname && exit 3"))
    assert code == 3
    assert {"new", "bin", "pod-one"} <= set(output.split())


def test_exec_with_a_terminal_that_is_resized(vm: GuestVm) -> None:
    async def work() -> bytes:
        await vm.start("tty", config("sleep", "100"))
        spec = Packed(value=json.dumps(process("sh", "-c", "stty size; cat", terminal=True)).encode())
        await vm.line.task("Exec", id="tty", exec_id="e", terminal=True, stdin="agent", stdout="agent", spec=spec)
        await vm.line.task("Start", id="tty", exec_id="e")
        await vm.line.task("ResizePty", id="tty", exec_id="e", width=90, height=33)
        spec = Packed(value=json.dumps(process("stty", "-F", "/dev/pts/0", "size")).encode())
        await vm.line.task("Exec", id="tty", exec_id="see", stdout="agent", spec=spec)
        await vm.line.task("Start", id="tty", exec_id="see")
        seen = await vm.line.output("tty", "see")
        await vm.line.guest("WriteInput", pb.WriteInputRequest(id="tty", exec_id="e", data=b"hello\n\x04"))
        typed = await vm.line.output("tty", "e")
        assert (await vm.line.task("Wait", id="tty", exec_id="e")).exit_status == 0
        assert b"hello\r\nhello\r\n" in typed
        await end(vm.line, "tty")
        return seen

    assert vm.do(work()) == b"33 90\n"


async def end(line: Line, name: str) -> int:
    """Kill a container and remove it; its exit code."""
    await line.task("Kill", id=name, signal=9, all=True)
    status = (await line.task("Wait", id=name)).exit_status
    await line.task("Delete", id=name)
    return int(status)


def test_a_kill_of_an_exec_takes_what_it_started_and_spares_the_container(vm: GuestVm) -> None:
    async def work() -> None:
        await vm.start("kill", config("sleep", "100"))
        script = "sleep 71 & setsid sleep 72 & echo up; wait"
        spec = Packed(value=json.dumps(process("sh", "-c", script)).encode())
        await vm.line.task("Exec", id="kill", exec_id="e", stdout="agent", spec=spec)
        await vm.line.task("Start", id="kill", exec_id="e")
        first = await vm.line.guest("ReadOutput", pb.ReadOutputRequest(id="kill", exec_id="e"))
        assert first.data == b"up\n"
        assert len((await vm.line.task("Pids", id="kill")).processes) == 4
        await vm.line.task("Kill", id="kill", exec_id="e", signal=9, all=True)
        assert (await vm.line.task("Wait", id="kill", exec_id="e")).exit_status == 137
        for _ in range(100):  # what else it started dies beside it
            shown = await vm.line.guest("Processes", pb.ProcessesRequest(id="kill"))
            living = [one.command for one in shown.processes if one.state != "Z"]
            if living == ["sleep 100"]:
                break
            await asyncio.sleep(0.1)
        assert living == ["sleep 100"]
        assert await end(vm.line, "kill") == 137

    vm.do(work())


def test_figures_of_a_container_and_of_the_machine(vm: GuestVm) -> None:
    async def work() -> None:
        pid = await vm.start("figures", config("sh", "-c", "echo up; read line"), stdin=True)
        await vm.line.guest("ReadOutput", pb.ReadOutputRequest(id="figures"))
        (one,) = (await vm.line.guest("Processes", pb.ProcessesRequest(id="figures"))).processes
        assert (one.pid, one.uid, one.command) == (pid, 0, "sh -c echo up; read line")
        assert one.rss_bytes > 0
        assert abs(one.started_unix_ns / 1e9 - time.time()) < 60
        packed = (await vm.line.task("Stats", id="figures")).stats
        metrics = cgroup2_metrics_pb2.Metrics.FromString(packed.value)
        assert metrics.pids.current == 1
        assert metrics.memory.usage > 0
        machine = await vm.line.guest("Metrics")
        assert 100 << 20 < machine.memory_total_bytes < 256 << 20
        assert 0 < machine.agent_rss_bytes < 4 << 20
        assert machine.processes == 1
        await end(vm.line, "figures")

    vm.do(work())


def test_a_pause_is_not_undone_by_a_thaw_of_all(vm: GuestVm) -> None:
    async def frozen(name: str) -> bool:
        return bool((await vm.line.task("State", id=name)).status == 4)

    async def work() -> None:
        for name in ("one", "two"):
            await vm.start(name, config("sh", "-c", "while :; do date +%N; sleep 0.05; done"))
        await vm.line.task("Pause", id="one")
        await vm.line.guest("Freeze", pb.FreezeRequest(frozen=True))
        first = await vm.line.guest("Metrics")
        request = pb.RenewRequest(entropy=guestvm.entropy(), thaw=True)
        assert "thaw" in (await vm.line.guest("Renew", request)).renewed
        assert await frozen("one")
        assert not await frozen("two")
        before = await vm.line.guest("ReadOutput", pb.ReadOutputRequest(id="two"))
        after = await vm.line.guest("ReadOutput", pb.ReadOutputRequest(id="two", offset=len(before.data)))
        assert after.data
        assert first.processes >= 2
        await vm.line.task("Resume", id="one")
        for name in ("one", "two"):
            await end(vm.line, name)

    vm.do(work())


def test_lack_of_memory_is_told_as_it_happens(vm: GuestVm) -> None:
    async def work() -> None:
        await vm.start("oom", config("sh", "-c", "tail /dev/zero; sleep 100", memory_bytes=16 << 20))
        async with vm.line.client.stream(
            "drupe.guest.v1.Guest", "Events", pb.Event, pb.EventsRequest(), timeout_s=30
        ) as events:
            async for event in events:
                if event.WhichOneof("of") == "oom":
                    assert event.oom.id == "oom"
                    break
        assert (await vm.line.task("State", id="oom")).status == 2, "only the greedy process was killed"
        await end(vm.line, "oom")

    vm.do(work())


def test_a_renewal_leaves_nothing_of_the_original(vm: GuestVm) -> None:
    async def work() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        await vm.start("client", config("sh", "-c", f"nc 10.0.2.2 {port}; echo over"), stdin=True)
        listener.settimeout(30)
        peer, _ = await asyncio.to_thread(listener.accept)
        before = await vm.line.guest("Check", pb.CheckRequest(protocol=1))
        new = "52:54:00:aa:00:02"
        interface = pb.Interface(
            device=pb.Device(mac=MAC), name="pod0", mac=new, mtu=1300, addresses=["10.0.2.16/24"], up=True
        )
        request = pb.RenewRequest(
            entropy=guestvm.entropy(), clock_unix_ns=time.time_ns() + 3600 * 10**9, machine_id="2" * 32,
            hostname="pod-two", interfaces=[interface], routes=[pb.Route(gateway="10.0.2.2", interface="pod0")],
            resolv_conf=b"nameserver 10.0.2.4\n", hosts=b"127.0.0.1 localhost two\n", thaw=True,
        )  # fmt: skip
        renewed = (await vm.line.guest("Renew", request)).renewed
        assert set(renewed) == {
            "entropy", "clock", "machine-id", "hostname", "resolv-conf", "hosts", "connections", "interfaces", "routes",
            "thaw",
        }  # fmt: skip
        assert b"over" in await vm.line.output("client"), "the connection was dropped"
        assert before.boot_id
        peer.close()
        listener.close()
        await end_ended(vm.line, "client")
        said = await vm.line.guest("ListInterfaces")
        (pod0,) = [one for one in said.interfaces if one.name == "pod0"]
        assert (pod0.mac, pod0.mtu) == (new, 1300)
        assert [one for one in pod0.addresses if not one.startswith("fe80")] == ["10.0.2.16/24"]
        code, output = await vm.run("renewed", "sh", "-c", "hostname; date +%s")
        name, seconds = output.split()
        assert (code, name) == (0, "pod-two")
        assert abs(int(seconds) - time.time() - 3600) < 60
        back = pb.RenewRequest(
            entropy=guestvm.entropy(), clock_unix_ns=time.time_ns(), interfaces=[INTERFACE], routes=ROUTES
        )
        back.interfaces[0].device.mac = new
        await vm.line.guest("Renew", back)

    with pytest.raises(InvalidArgument, match="32 bytes of entropy"):
        vm.do(vm.line.guest("Renew", pb.RenewRequest(entropy=b"few")))
    vm.do(work())


async def end_ended(line: Line, name: str) -> None:
    await line.task("Wait", id=name)
    await line.task("Delete", id=name)


def test_files_go_in_and_out_and_links_lead_nowhere_else(vm: GuestVm) -> None:
    async def work() -> None:
        await vm.start("copy", config("sh", "-c", "ln -s /../../../../run /tmp/out; echo ready; sleep 100"))
        await vm.line.guest("ReadOutput", pb.ReadOutputRequest(id="copy"))
        given = tars.archive(tars.member("sub/hello", data=b"x" * 700_000, mode=0o640, uid=7))
        with pytest.raises(NotFound, match='no directory "/tmp/out"'):  # /run of the container, which it does not have
            await vm.line.copy_in("copy", "/tmp/out", given)
        await vm.line.copy_in("copy", "/tmp", given)
        back = await vm.line.copy_out("copy", "/tmp/sub")
        with tarfile.open(fileobj=io.BytesIO(back)) as archive:
            assert sorted(archive.getnames()) == ["sub", "sub/hello"]
            member = archive.getmember("sub/hello")
            assert (member.size, member.uid, member.mode & 0o7777) == (700_000, 7, 0o640)
        link = await vm.line.copy_out("copy", "/tmp/out")
        with tarfile.open(fileobj=io.BytesIO(link)) as archive:
            assert archive.getmember("out").issym()
        with pytest.raises(NotFound, match="/nothing"):
            await vm.line.copy_out("copy", "/nothing")
        with pytest.raises(InvalidArgument, match="cannot unpack"):
            await vm.line.copy_in("copy", "/tmp", b"no tar at all" * 100)
        await end(vm.line, "copy")

    vm.do(work())


def test_a_mount_into_a_container_that_runs(vm: GuestVm) -> None:
    async def work() -> None:
        await vm.start("mounted", config("sleep", "100"))
        mount = pb.GuestMount(type="tmpfs", source="tmpfs", target="/data/deep", options=["size=1m"])
        await vm.line.guest("Mount", pb.MountRequest(mount=mount, id="mounted"))
        code, output = await vm.execute("mounted", "sh", "-c", "touch /data/deep/x && mount")
        assert code == 0
        assert "tmpfs on /data/deep type tmpfs" in output
        assert "/data/deep" not in (await vm.run("other", "mount"))[1]
        await vm.line.guest("Unmount", pb.UnmountRequest(target="/data/deep", id="mounted"))
        assert "/data/deep" not in (await vm.execute("mounted", "mount"))[1]
        await end(vm.line, "mounted")

    vm.do(work())


def test_a_disk_comes_and_goes(vm: GuestVm) -> None:
    async def work() -> None:
        disk = pb.Device(disk_serial="later")
        waiting = asyncio.ensure_future(
            vm.line.guest("AwaitDevice", pb.AwaitDeviceRequest(device=disk, timeout_ms=30000))
        )
        node = {
            "driver": "raw",
            "node-name": "later",
            "file": {"driver": "file", "filename": str(vm.directory / "data.img")},
        }
        await vm.qmp("blockdev-add", **node)
        await vm.qmp("device_add", driver="virtio-blk-pci", drive="later", id="later", bus="port1", serial="later")
        assert (await waiting).name.startswith("vd")
        mount = pb.GuestMount(type="ext4", device=disk, target="/mnt/later")
        await vm.line.guest("Mount", pb.MountRequest(mount=mount))
        await vm.line.guest("Unmount", pb.UnmountRequest(target="/mnt/later"))
        await vm.qmp("device_del", id="later")
        gone = pb.AwaitDeviceRequest(device=disk, gone=True, timeout_ms=30000)
        await vm.line.guest("AwaitDevice", gone)

    vm.do(work())


def test_an_interface_processors_and_memory_come_later(vm: GuestVm) -> None:
    async def work() -> None:
        mac = "52:54:00:aa:00:09"
        wanted = pb.Interface(device=pb.Device(mac=mac), name="late0", mac=mac, addresses=["10.8.0.1/24"], up=True)
        waiting = asyncio.ensure_future(
            vm.line.guest("SetInterfaces", pb.SetInterfacesRequest(interfaces=[wanted]), timeout_s=30)
        )
        await vm.qmp("netdev_add", type="user", id="net9")
        await vm.qmp("device_add", driver="virtio-net-pci", netdev="net9", mac=mac, bus="port2", id="net9", romfile="")
        await waiting
        said = await vm.line.guest("ListInterfaces")
        assert "10.8.0.1/24" in [address for one in said.interfaces if one.name == "late0" for address in one.addresses]
        await vm.line.guest("SetInterfaces", pb.SetInterfacesRequest(remove=["late0", "never-there"]))

        await vm.qmp(
            "device_add", **{"driver": "max-x86_64-cpu", "id": "cpu1", "socket-id": 1, "core-id": 0, "thread-id": 0}
        )
        await vm.qmp("object-add", **{"qom-type": "memory-backend-ram", "id": "more", "size": 128 << 20})
        await vm.qmp("device_add", driver="pc-dimm", id="dimm", memdev="more")
        request = pb.SetOnlineRequest(processors=2, memory_bytes=384 << 20, timeout_ms=30000)
        now = await vm.line.guest("SetOnline", request)
        assert (now.processors, now.memory_bytes) == (2, 384 << 20)
        assert (await vm.line.guest("SetOnline", pb.SetOnlineRequest(processors=1, timeout_ms=30000))).processors == 1

    vm.do(work())


def test_zz_garbage_ends_a_connection_alone_and_a_shutdown_flushes_and_powers_off(vm: GuestVm) -> None:
    """The last one: it ends the machine."""

    async def check() -> Line:
        line = await Line.connect(vm.sock)
        assert (await line.guest("Check", pb.CheckRequest(protocol=1))).is_set_up
        return line

    async def send(garbage: bytes) -> None:
        _, writer = await asyncio.open_unix_connection(str(vm.sock))
        writer.write(garbage)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def work() -> None:
        disk = pb.Device(disk_serial="kept")
        data = vm.directory / "data.img"
        await vm.qmp(
            "blockdev-add", **{"driver": "raw", "node-name": "kept", "file": {"driver": "file", "filename": str(data)}}
        )
        await vm.qmp("device_add", driver="virtio-blk-pci", drive="kept", id="kept", bus="port3", serial="kept")
        mount = pb.GuestMount(type="ext4", device=disk, target="/mnt/kept")
        await vm.line.guest("Mount", pb.MountRequest(mount=mount))
        lower = pb.GuestMount(type="erofs", options=["ro"], device=pb.Device(disk_serial="busybox"))
        spec = json.loads(
            config("sh", "-c", "trap 'echo bye > /data/last; exit' TERM; echo up; while :; do sleep 0.1; done")
        )
        spec["mounts"].append({"destination": "/data", "type": "bind", "source": "/mnt/kept", "options": ["bind"]})
        put = await vm.line.guest(
            "PutBundle", pb.PutBundleRequest(id="last", config_json=json.dumps(spec).encode(), rootfs=[lower])
        )
        await vm.line.task("Create", id="last", bundle=put.bundle, stdout="agent")
        await vm.line.task("Start", id="last")
        await vm.line.guest("ReadOutput", pb.ReadOutputRequest(id="last"))
        await vm.line.guest("Shutdown", pb.ShutdownRequest(timeout_ms=10000))

    vm.do(vm.line.close())
    huge, unfinished = b"\x7f\xff\xff\xff" + bytes(6) + bytes(100), b"\x00\x00\x00\x04" + bytes(5)
    for garbage in (os.urandom(4096), huge, unfinished):
        vm.do(send(garbage))
        vm.line = vm.do(check())
        vm.do(vm.line.close())
    vm.line = vm.do(check())
    vm.do(work())
    vm.do(vm.line.close())
    assert vm.process.wait(60) == 0
    dumped = subprocess.run(
        ["debugfs", "-R", "cat /last", vm.directory / "data.img"], capture_output=True, text=True, check=True
    )
    assert dumped.stdout == "bye\n"

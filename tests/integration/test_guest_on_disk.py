"""The other form of a guest image: its root on an EROFS disk; and a pod whose containers share a PID namespace."""

from __future__ import annotations

from pathlib import Path

import pytest

from drupe.rpc.guest import guest_pb2 as pb
from framework import guestvm
from framework.guestvm import GuestVm, config

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def test_a_root_on_a_disk_and_one_process_table_for_a_pod(tmp_path: Path) -> None:
    image = guestvm.image(tmp_path / "root", form="erofs")
    assert image.rootfs is not None
    vm = GuestVm(tmp_path, image, guestvm.busybox_disk(tmp_path))
    try:
        vm.do(look(vm))
        assert vm.process.wait(60) == 0
    finally:
        vm.close()


async def look(vm: GuestVm) -> None:
    """The pod of two, seen from one of them."""
    request = pb.SetupRequest(hostname="both", machine_id="3" * 32, share_pid=True)
    await vm.line.guest("Setup", request)
    await vm.start("first", config("sleep", "1000"))
    await vm.start("second", config("sh", "-c", "echo $$; (sleep 0.1; exit) & cat /proc/*/cmdline"))
    output = (await vm.line.output("second")).decode()
    assert "sleep\x001000" in output, "the other container's process is seen"
    assert "--hold" in output, "the first process of the pod's table is the agent's"
    assert int(output.split()[0]) > 2
    await vm.line.task("Wait", id="second")
    await vm.line.task("Delete", id="second")
    assert (await vm.line.task("State", id="first")).status == 2, "the end of one container is not the other's"
    await vm.line.guest("Shutdown", pb.ShutdownRequest(timeout_ms=200))
    await vm.line.close()

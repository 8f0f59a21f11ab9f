"""A caller of the Task service as tests of its input need one: the bundle that it names, and what must hold after each
test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from drupe.rpc.containerd import task_v2_pb2 as task
from drupe.rpc.ttrpc.envelope import Code
from drupe.spec.containerd import ShimStart, ShimStarted
from drupe.spec.control import ListFilter
from framework.bundles import config, make_bundle
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.raw_ttrpc import Raw

PEER = {"grpc": "/nonexistent/containerd.sock", "ttrpc": "/nonexistent/containerd.sock.ttrpc", "namespace": "n"}
MEBIBYTE = 1 << 20
GROWTH_BYTES = 48 * MEBIBYTE
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
REFUSALS = {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED, Code.FAILED_PRECONDITION, Code.ABORTED}


def task_address(daemon: Daemon) -> str:
    """Of the Task service."""
    with daemon.client() as client:
        started: ShimStarted = client.call(
            "containerd.start", ShimStart(name="containerd-shim-drupe-v2", id="x", **PEER), timeout_s=20
        )
    return started.address.removeprefix("unix://")


def harmless(daemon: Daemon, address: str) -> Iterator[Raw]:
    """A connection to the Task service. After the test another is served as before, memory has not grown, and no pod
    is left."""
    before, log = rss_bytes(daemon.pid), len(daemon.log.read_text())
    with Raw(address) as connection:
        yield connection
    with Raw(address) as other:
        assert other.call("State", task.StateRequest(id="nobody"))[0] == Code.NOT_FOUND
    assert rss_bytes(daemon.pid) - before < GROWTH_BYTES
    wait_until(lambda: not pods(daemon), what="no pod is left")
    assert "Traceback" not in daemon.log.read_text()[log:], daemon.log.read_text()[log:]


def bundles(directory: Path, rootfs: Path) -> Callable[..., Path]:
    """Make a bundle; `changes` as of framework.bundles.config."""

    def make(*args: str, **changes: Any) -> Path:
        directory.mkdir(exist_ok=True)
        document = config(*(args or ("sleep", "1000")), cgroup="input", **changes)
        document["root"] = changes.get("root", {"path": str(rootfs)})
        with suppress(FileExistsError):
            (directory / "rootfs").symlink_to(rootfs)
        return make_bundle(directory, document, rootfs=rootfs)

    return make


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pods(daemon: Daemon) -> list[Any]:
    with daemon.client() as client:
        return list(client.call("pod.list", ListFilter(), timeout_s=20).pods)


def end(raw: Raw, name: str = "t") -> None:
    """Kill and delete a task."""
    raw.call("Kill", task.KillRequest(id=name, signal=9, all=True))
    raw.call("Wait", task.WaitRequest(id=name))
    raw.ask("Delete", task.DeleteRequest(id=name), task.DeleteResponse)

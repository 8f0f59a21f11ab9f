"""An exec started by the keeper and one by `crun exec` in the same container are the same process, setting by setting,
but for three in which ours is as a container's first process is. The container has a hook: so crun made it and its
cgroups, and can exec in it too."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drupe.resources.cgroups import detect
from drupe.runtime.container import Container
from drupe.runtime.paths import Paths
from drupe.sandboxers.contract import ExecConfig
from drupe.sandboxers.kept.tasks import task_key
from drupe.sandboxers.runc.tasks import RuncTasks
from drupe.services.build import open_core
from drupe.spec import (
    ContainerSpec,
    ExecSpec,
    Hook,
    Hooks,
    Namespaces,
    NetworkSpec,
    PodSpec,
    Resources,
    Rlimit,
    SecuritySpec,
)
from drupe.spec.pod import UserNamespace
from framework.images import copy_store
from framework.probes import needs_keeper, needs_program

pytestmark = pytest.mark.root

PROBE = r"""
grep -E '^(Umask|State|Uid|Gid|Groups|Sig[PBC]|ShdPnd|Cap|NoNew|Seccomp|Spec|Cpus|Mems|CoreDumping)' /proc/self/status
echo ignored $((0x$(grep SigIgn /proc/self/status | cut -f2) & 0x7fffffff))  # C libraries leave 32 and 33 ignored
grep -v 'Max processes' /proc/self/limits
cat /proc/self/cgroup
for name in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$name; done
pwd; umask; env | sort; ls /proc/self/fd | tr '\n' ' '
for fd in 0 1 2; do stat -Lc '%F %a' /proc/$$/fd/$fd; done
[ -t 0 ] || stat -Lc %u:%g /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2
tty | tr -d 0-9; stty size 2>/dev/null; cat /proc/self/mountinfo | wc -l
read -r pid name state parent group session terminal rest < /proc/$$/stat
echo terminal $((terminal != 0))
echo ours $((group == pid)) $((session == pid)) $(cat /proc/self/oom_score_adj) $([ -t 0 ] && stat -Lc %u /proc/$$/fd/0)
"""


@pytest.fixture(autouse=True)
def needs() -> None:
    needs_keeper()
    needs_program("crun", "busybox")
    if not detect().join_files("/x"):
        pytest.skip("cgroup v2: crun starts every exec")


@dataclass
class Streams:
    """Pipes for an exec, closed at the end; `theirs` are its ends."""

    ours: dict[str, int]
    theirs: dict[str, int]

    @classmethod
    def open(cls) -> Streams:
        stdin, give = os.pipe()
        take, stdout = os.pipe()
        return cls({"stdin": give, "stdout": take}, {"stdin": stdin, "stdout": stdout, "stderr": os.dup(stdout)})

    def close(self, *fds: int) -> None:
        for fd in fds:
            os.close(fd)

    async def output(self) -> str:
        """All that it says, once everybody else has let go of its output."""
        self.close(*self.theirs.values(), self.ours["stdin"])
        with os.fdopen(self.ours["stdout"], "rb") as file:
            return (await asyncio.to_thread(file.read)).decode()


@pytest.fixture
def directory(busybox: Path) -> Iterator[Path]:
    """A runtime's directory with the image, where the ids of a user namespace can get to."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o711)
        copy_store(busybox, Path(name) / "root")
        yield Path(name)


@asynccontextmanager
async def container(directory: Path, spec: PodSpec) -> AsyncIterator[Container]:
    root = directory / "root"
    async with open_core(Paths(root=root, run=directory / "run")) as core:
        pod = await core.run_pod(spec)
        try:
            yield next(iter(pod.containers.values()))
        finally:
            await core.delete_pod(pod, force=True)


async def said(container: Container, spec: ExecSpec, how: str) -> str:
    """The output of an exec; how: the method of the task service that starts it."""
    tasks = container.tasks
    assert isinstance(tasks, RuncTasks)
    process = await container.node.storage.exec_process(container, spec)
    streams = Streams.open()
    name, size = secrets.token_hex(4), {"rows": spec.rows or None, "cols": spec.cols or None}
    config = ExecConfig(
        id=name, task=container.id, process=process, dir=container.bundle, tty=spec.tty, fds=streams.theirs, **size
    )
    join = detect().join_files(container.cgroup)
    await getattr(tasks, how)(task_key(container.id, name), config, join)
    return await streams.output()


def pod(**fields: Any) -> PodSpec:
    namespaces = fields.pop("namespaces", Namespaces())
    return PodSpec(
        network=NetworkSpec(mode="none"),
        hooks=Hooks(poststop=(Hook(path="/bin/true"),)),
        namespaces=namespaces,
        containers=(ContainerSpec(image="busybox", argv=("sleep", "600"), stop_signal="KILL", **fields),),
    )


ASKED = {
    "plain": ({}, {}),
    "user": ({}, {"user": "1000:1000", "cwd": "/tmp", "env": ("A=b",)}),
    "user of the container": ({"user": "1000"}, {}),
    "groups": ({"groups": ("5", "7")}, {}),
    "capability": ({}, {"user": "1000", "cap_add": ("NET_ADMIN",)}),
    "privileged": ({}, {"privileged": True}),
    "in a privileged container": ({"security": SecuritySpec(privileged=True)}, {}),
    "may get privileges": ({}, {"no_new_privileges": False}),
    "without a filter": ({"security": SecuritySpec(seccomp="unconfined", cap_drop=("ALL",))}, {}),
    "limits": (
        {
            "rlimits": (Rlimit(name="nofile", soft=100, hard=200), Rlimit(name="core", soft=0, hard=0)),
            "oom_score_adj": 500,
        },
        {},
    ),
    "terminal": ({}, {"tty": True, "rows": 30, "cols": 100}),
    "terminal of a user": ({}, {"tty": True, "user": "1000:1000"}),
    "user namespace": ({"namespaces": Namespaces(user=UserNamespace())}, {}),
    "user in a user namespace": ({"namespaces": Namespaces(user=UserNamespace())}, {"user": "1000:1000"}),
    "pids of the pod": ({"namespaces": Namespaces(pid="pod")}, {}),
    "host's names and pids": ({"namespaces": Namespaces(pid="host", uts="host", ipc="host")}, {}),
}


@pytest.mark.parametrize("name", ASKED)
def test_the_same_process(name: str, directory: Path) -> None:
    made, asked = ASKED[name]
    spec = ExecSpec(argv=("sh", "-c", PROBE), **asked)  # type: ignore[arg-type]

    async def scenario() -> None:
        async with container(directory, pod(**made)) as here:
            theirs = await said(here, spec, "_have_entered")
            ours = await said(here, spec, "_enter")
        (*same, better), (*expected, _) = ours.splitlines(), theirs.splitlines()
        assert len(expected) > 60
        assert same == expected
        # It leads a session, has the container's OOM score, and owns its terminal.
        owner = [spec.user.partition(":")[0] if spec.user else "0"] if spec.tty else []
        assert better.split() == ["ours", "1", "1", str(made.get("oom_score_adj", 0)), *owner]

    asyncio.run(scenario())


def test_an_exec_needs_no_further_process(directory: Path) -> None:
    """A container that has all the processes it may have can still be looked at, and mended."""

    async def scenario() -> None:
        full = msgspec.structs.replace(pod(), hooks=Hooks())
        limited = msgspec.structs.replace(full.containers[0], resources=Resources(pids=1))
        spec = msgspec.structs.replace(full, containers=(limited,))
        async with container(directory, spec) as here:
            out = await said(here, ExecSpec(argv=("cat", "/sys/fs/cgroup/pids/pids.current")), "_enter")
            assert out == "2\n"

    asyncio.run(scenario())


def test_a_start_needs_no_room_for_crun(directory: Path) -> None:
    """The pod's limit counts what runs in it, not what makes it."""

    async def scenario() -> None:
        made = pod()
        one = msgspec.structs.replace(made, hooks=Hooks(), resources=Resources(pids=1))
        async with container(directory, one) as here:
            assert detect().pids(here.cgroup) == [here.status.pid]
            assert await said(here, ExecSpec(argv=("cat", "/proc/1/comm")), "_enter") == "sleep\n"

    asyncio.run(scenario())

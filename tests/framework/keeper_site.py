"""A keeper with a busybox bundle in a test's directory, and short ways to start things in it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from drupe.keeper.client import Keeper
from drupe.keeper.records import Created, Exit, Io, LogFile
from drupe.keeper.start import ensure_keeper

APPLETS = ("sh", "echo", "cat", "sleep", "stty", "dd", "seq", "kill", "true", "head", "tr", "yes")
PIPES = Io()


class Site:
    """Directories, the keeper, and a queue of exits. `keeper` changes when the test restarts it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run_dir = directory / "run"
        self.bundle = directory / "bundle"
        self.exits: dict[str, asyncio.Future[Exit]] = {}
        self.keeper: Keeper
        self._containers: list[str] = []

    async def start(self, previous: Keeper | None = None) -> Keeper:
        """Starts a keeper; previous: the connection to one that died, which comes back connected to the new one."""
        self.keeper = await ensure_keeper(self.run_dir, previous=previous, log=self.directory / "keeper.log")
        if previous is None:
            self.keeper.on_exit(lambda record: self.exit_of(record.task).set_result(record))
        return self.keeper

    def exit_of(self, task: str) -> asyncio.Future[Exit]:
        return self.exits.setdefault(task, asyncio.get_running_loop().create_future())

    async def ended(self, task: str, timeout_s: float = 20) -> Exit:
        return await asyncio.wait_for(asyncio.shield(self.exit_of(task)), timeout_s)

    def log(self, task: str) -> Path:
        return self.directory / f"{task}.log"

    def exit_file(self, task: str) -> Path:
        return self.directory / f"{task}.exit"

    def output(self, task: str, stream: str = "stdout") -> str:
        """What the CRI log says that a task wrote."""
        lines = [line.split(" ", 3) for line in self.log(task).read_text().splitlines()]
        return "".join(text + ("\n" if tag == "F" else "") for _, from_, tag, text in lines if from_ == stream)

    # ── containers ──

    def crun(self, *words: str) -> list[str]:
        return ["crun", "--root", str(self.directory / "crun"), "--log", str(self.directory / "crun.log"), *words]

    def write_bundle(self, script: str, *, terminal: bool) -> None:
        root = self.bundle / "rootfs"
        if not root.exists():
            make_rootfs(root)
        mounts = [{"destination": "/proc", "type": "proc", "source": "proc"}]
        mounts += [{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}]
        mounts += [{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]}]
        config = {
            "ociVersion": "1.0.0",
            "process": {
                "terminal": terminal,
                "user": {"uid": 0, "gid": 0},
                "args": ["sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "root": {"path": "rootfs"},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
        }
        (self.bundle / "config.json").write_text(json.dumps(config))

    async def create(self, task: str, script: str, *, io: Io = PIPES, **options: Any) -> Created:
        """`crun create` of a container that runs `sh -c script`."""
        self.write_bundle(script, terminal=io.mode == "tty")
        self._containers.append(task)
        console = ["--console-socket", "{console}"] if io.mode == "tty" else []
        pidfile = self.directory / f"{task}.pid"
        words = ["create", "--bundle", str(self.bundle), "--pid-file", str(pidfile), *console, task]
        options.setdefault("log", LogFile(path=str(self.log(task))))
        return await self.keeper.create_task(
            task,
            self.crun(*words),
            pidfile=pidfile,
            exit_file=self.exit_file(task),
            io=io,
            log_file=self.directory / "crun.log",
            **options,
        )

    async def begin(self, task: str) -> None:
        await self.keeper.run(self.crun("start", task), check=True)

    async def container(self, task: str, script: str, **options: Any) -> Created:
        created = await self.create(task, script, **options)
        await self.begin(task)
        return created

    async def plain(self, task: str, script: str, *, io: Io = PIPES, **options: Any) -> Created:
        """A task without crun: a shell that leaves its child behind, as a runtime does."""
        pidfile = self.directory / f"{task}.pid"
        options.setdefault("log", LogFile(path=str(self.log(task))))
        # A shell gives its background jobs /dev/null as stdin unless told otherwise, and might itself reap a quick one.
        orphaned = "while [ -e /proc/$SHELL_PID ]; do :; done; "
        leave = 'exec 3<&0; SHELL_PID=$$ sh -c "$1" <&3 3<&- & echo $! > "$2"'
        argv = ["sh", "-c", leave, "sh", orphaned + script, str(pidfile)]
        return await self.keeper.create_task(
            task, argv, pidfile=pidfile, exit_file=self.exit_file(task), io=io, **options
        )

    async def close(self) -> None:
        if not self.keeper.connected:
            await self.start(self.keeper)
        for name in self._containers:
            await self.keeper.run(self.crun("delete", "--force", name))
        for info in await self.keeper.list():
            if info.running:
                await self.keeper.kill(info.task, 9)
                await self.ended(info.task)
        await self.keeper.shutdown(force=True)


def make_rootfs(root: Path) -> None:
    """A root directory of Debian's static busybox."""
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in APPLETS:
        (root / "bin" / name).symlink_to("busybox")
    for name in ("proc", "dev", "tmp", "sys"):
        (root / name).mkdir()


@asynccontextmanager
async def site(directory: Path) -> AsyncIterator[Site]:
    """A started keeper; afterwards all its containers and itself are gone."""
    here = Site(directory)
    await here.start()
    try:
        yield here
    finally:
        await here.close()


def in_site(directory: Path, scenario: Callable[[Site], Awaitable[None]]) -> None:
    """Runs one asynchronous test in a site of its own."""

    async def run() -> None:
        async with site(directory) as here:
            await scenario(here)

    asyncio.run(run())


class Pipe:
    """The two ends of a pipe; `close` closes what is still open."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self._open = {self.read_end, self.write_end}

    def shut(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            os.close(fd)

    def close(self) -> None:
        for fd in list(self._open):
            self.shut(fd)

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def read_all(fd: int, *, pause_s: float = 0.0) -> bytes:
    """Everything until the end of the pipe; pause_s between reads makes a slow reader."""
    loop = asyncio.get_running_loop()
    parts = []
    while part := await loop.run_in_executor(None, os.read, fd, 65536):
        parts.append(part)
        if pause_s:
            await asyncio.sleep(pause_s)
    return b"".join(parts)


def open_count(pid: int) -> int:
    """How many descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())

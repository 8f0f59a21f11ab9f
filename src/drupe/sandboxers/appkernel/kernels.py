"""Kernels before they are a pod's: each is started to wait, made and confined as far as that goes without a pod, and is
claimed by one packet (docs/appkernel.md). One serves one pod, whether it has waited long or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from drupe.errors import DeadlineExceeded, HelperFailed, Unavailable
from drupe.keeper.client import Keeper
from drupe.keeper.records import Io, LogFile
from drupe.keeper.start import mounts_root
from drupe.linux.unix_sockets import listening, send_fds
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.appkernel.line import SOCKET
from drupe.sandboxers.appkernel.platforms import PlatformChoice
from drupe.sandboxers.appkernel.records import PodRecord

_LOG_BYTES = 1 << 20
_FIRST_UID, _UIDS = 1_900_000_000, 50_000_000  # pairs of users that no account of a host has
_STARTS_WITHIN_S = 30.0
_ANSWER_BYTES = 1 << 16


@dataclass(slots=True)
class Waiting:
    """A kernel that waits for its claim. It ends when `socket` is closed. program: the file that it came from."""

    place: Path
    pid: int
    socket: socket.socket
    program: tuple[int, ...]

    @property
    def lives(self) -> bool:
        """As far as can be told without asking: it says nothing before it is claimed."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def answered(self) -> None:
        """Until it is the pod's, and confined. Unavailable for one that has ended, HelperFailed says what it lacks."""
        asked = asyncio.get_running_loop().sock_recv(self.socket, _ANSWER_BYTES)
        try:
            answer = await asyncio.wait_for(asked, _STARTS_WITHIN_S)
        except TimeoutError:
            raise DeadlineExceeded("the kernel does not take its pod", stage="kernel") from None
        except OSError:
            answer = b""
        if not answer:
            raise Unavailable("the kernel of the pod ended before it was ready", stage="kernel")
        if (error := msgspec.json.decode(answer).get("error")) is not None:
            raise HelperFailed("the kernel of the pod does not start", stage="kernel", cause=error["message"])


class Kernels:
    """Starts and claims them. program: the kernel, by path. platform: what they shall have under them."""

    def __init__(self, *, keeper: Keeper, cgroups: Cgroups, program: Path, platform: PlatformChoice) -> None:
        self.keeper = keeper
        self._cgroups = cgroups
        self._program = program
        self._platform = platform

    def version(self) -> tuple[int, ...]:
        """What tells the program from one that was put in its place."""
        stat = self._program.stat()
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

    async def launch(self, place: Path, key: str, *, restores: bool = False) -> Waiting:
        """One that waits. place: its directory, with a shared directory in it. key: the keeper's name for it. Its
        control socket listens before it starts: nobody waits for that to appear. restores: it is to go on from a
        snapshot."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        version = self.version()
        try:
            with theirs, listening(place / SOCKET, socket.SOCK_SEQPACKET) as control:
                fds = {"control": control.fileno(), "claim": theirs.fileno()}
                pid = await self._launch(place, key, fds, ["--restores", "yes"] if restores else [])
        except BaseException:
            ours.close()
            raise
        return Waiting(place, pid, ours, version)

    async def _launch(self, place: Path, key: str, fds: dict[str, int], further: list[str]) -> int:
        pidfile = place / "kernel.pid"
        words = [str(self._program), "serve", "--control", "3", "--claim", "4", "--share", str(place / "share")]
        words += ["--platform", await self._platform.name()]
        created = await self.keeper.create_task(
            key,
            [*words, "--pidfile", str(pidfile), "--uid", str(_uid_of(key)), *further],
            pidfile=pidfile,
            exit_file=pidfile.with_suffix(".exit"),
            io=Io(mode="pipes"),
            log=LogFile(path=str(place / "kernel.log"), max_bytes=_LOG_BYTES, max_files=2),
            fds=fds,
            extra_fds=tuple(fds),
            cwd=place,
            timeout_s=_STARTS_WITHIN_S,
        )
        return created.pid

    def claim(self, kernel: Waiting, record: PodRecord) -> None:
        """Tell it its pod, whose cgroup is there; `Waiting.answered` is when it is ready. It moves itself: to be moved
        takes a lock of the whole host (decision 17). Unavailable when it has ended."""
        with contextlib.ExitStack() as opened:
            files = self._cgroups.join_files(record.leaf) or [self._cgroups.procs_file(record.leaf)]
            fds = [_opened(opened, file, os.O_WRONLY) for file in files]
            fds.append(_opened(opened, self._seen(record.netns), os.O_RDONLY))
            try:
                send_fds(kernel.socket, self._packet(len(files), record), fds)
            except OSError:
                raise Unavailable("the kernel that waited has ended", stage="kernel") from None

    def _packet(self, cgroups: int, record: PodRecord) -> bytes:
        memory_bytes, processors = self._cgroups.room(record.leaf)
        fields = {
            "fds": [*(f"cgroup{number}" for number in range(cgroups)), "netns"],
            "hostname": record.hostname, "memory_bytes": memory_bytes, "processors": processors,
        }  # fmt: skip
        return msgspec.json.encode(fields)

    def _seen(self, path: str) -> str:
        """A network namespace as the keeper sees it, which has pinned it."""
        return path if path.startswith("/proc/") else f"{mounts_root(self.keeper)}{path}"


def _opened(stack: contextlib.ExitStack, path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _uid_of(key: str) -> int:
    """The host's user that a kernel runs as; the next number is that of its stubs."""
    return _FIRST_UID + 2 * (zlib.crc32(key.encode()) % _UIDS)

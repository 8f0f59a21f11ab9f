"""The User-mode Linux driver: a kernel as a process (Documentation/virt/uml), spoken to by its management console.

It needs no KVM and its programs run at the processor's own speed, but it is no machine: the boundary is ptrace(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from drupe.errors import DeadlineExceeded, HelperFailed, NotFound, ResourceExhausted, Unavailable, Unsupported
from drupe.hypervisors.contract import (
    Device,
    Disk,
    Hypervisor,
    Launch,
    Machine,
    MachineConfig,
    MachineStatus,
    Nic,
    said,
)  # fmt: skip
from drupe.hypervisors.lines import Line, open_fifos
from drupe.hypervisors.words import readable
from drupe.rpc.timeouts import timeout

ANSWERS_WITHIN_S = 10.0
MOST_DISKS, MOST_NICS = 16, 16
_MAGIC, _VERSION = 0xCAFEBABE, 2
_MAX_WORDS_BYTES = 1 << 20
_REQUEST = struct.Struct("=III")  # magic, version, length; the answer: error, more, length
_NO_SHARES = "no: virtiofsd tells its tag to QEMU only, and Rust's refuses UML's table of memory"
_FIXED = "no: what it has at the start is all it gets"
_AGENT_IN, _AGENT_OUT = "agent.in", "agent.out"
_counter = itertools.count()


def find_uml(program: str = "") -> str:
    """The path of the kernel. NotFound says how to install it."""
    found = shutil.which(program or "linux.uml")
    if found is None:
        raise NotFound(f"{program or 'linux.uml'} is not installed", hint="apt-get install user-mode-linux")
    return found


class Uml(Hypervisor):
    """program: the kernel itself, by name or path; `MachineConfig.kernel` is not used. Disks are ubda, ubdb … in the
    guest, in their order: they have no serials. Its console is its standard output."""

    name: ClassVar[str] = "uml"
    abilities: ClassVar[Mapping[str, str]] = said({
        "save": "no: its memory is that of many processes",
        "clone": "no: it cannot be saved",
        "hotplug-share": _NO_SHARES,
        "hotplug-vfio": "no: it has no PCI",
        "resize-processors": "no: it has one processor",
        "resize-memory": _FIXED,
        "balloon": _FIXED,
        "virtiofs": _NO_SHARES,
        "9p": "no: it has no virtio transport for 9p",
        "vhost-user": "no: Rust's back-ends refuse its table of memory",
        "vsock": "no: it would come by vhost-user",
        "serial": "limited: a serial line, over two FIFOs that the kernel holds open",
        "multiqueue": "no: an interface has one queue",
    })  # fmt: skip

    def __init__(self, program: str = "linux.uml") -> None:
        self._program = program

    def prepare(self, config: MachineConfig) -> Launch:
        refuse(config)
        console = config.dir / "m" / "mconsole"
        return Launch(
            argv=[shutil.which(self._program) or self._program, *_words(config)],
            env={"TMPDIR": "/dev/shm"},  # noqa: S108 its memory is a file there that has no name
            control=console,
            agent=config.dir / _AGENT_OUT,
            fifos=(config.dir / _AGENT_IN, config.dir / _AGENT_OUT),
            devices=["/dev/ptmx", *(["/dev/net/tun"] if config.nics else [])],
        )

    async def open_line(self, config: MachineConfig) -> Line:
        """Its serial line, `/dev/ttyS0` in the guest. Until the agent has it and says so, the line echoes and takes
        some bytes for commands: nothing is said to it before."""
        greeted = config.dir / "m" / "greeted"
        reader, writer = await open_fifos(config.dir / _AGENT_OUT, config.dir / _AGENT_IN)
        try:
            if not greeted.exists():
                await reader.read(1)
                greeted.touch()
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def connect(self, config: MachineConfig, *, timeout_s: float) -> Machine:
        console = Mconsole(config.dir)
        try:
            async with timeout(timeout_s):
                while not await console.answers():  # noqa: ASYNC110 nothing tells when its kernel listens
                    await asyncio.sleep(0.02)
                pid = int((config.dir / "m" / "pid").read_text())
                return UmlMachine(console, config, os.pidfd_open(pid), pid)
        except TimeoutError:
            late = f"User-mode Linux was not ready within {timeout_s:g} s"
            raise DeadlineExceeded(late, stage="vmm", hint="its output may say why") from None
        except (OSError, ValueError):
            raise Unavailable("User-mode Linux has gone", stage="vmm") from None


def refuse(config: MachineConfig) -> None:
    """Raises Unsupported for what it cannot do."""
    for refused, what, feature in (
        (config.accelerator != "native", "runs natively, not by an accelerator", "accelerator"),
        (bool(config.shares), "has no shared directories", "virtiofs"),
        (bool(config.host_devices), "has no PCI", "hotplug-vfio"),
        (max(config.processors, config.processors_max) > 1, "has one processor", "resize-processors"),
        (config.memory_max_bytes > config.memory_bytes, "keeps the memory that it has", "resize-memory"),
        (config.saved is not None, "cannot be saved", "save"),
        (any(nic.queues > 1 for nic in config.nics), "has one queue for an interface", "multiqueue"),
        (any(not nic.tap for nic in config.nics), "opens its taps by name", "vhost-user"),
        (any(d.format != "raw" or d.socket for d in config.disks), "takes raw disks from files only", "vhost-user"),
    ):
        if refused:
            raise Unsupported(f"User-mode Linux {what}", feature=feature)


def _words(config: MachineConfig) -> list[str]:
    disks = [disk_word(number, disk) for number, disk in enumerate(config.disks)]
    nics = [nic_word(number, nic) for number, nic in enumerate(config.nics)]
    initrd = [f"initrd={config.initrd}"] if config.initrd else []
    # "noreboot" keeps it from starting itself anew; the serial line is the agent's, its ends the two FIFOs.
    line = ["ssl=null", "ssl0=fd:3,fd:4", "drupe.channel=tty:/dev/ttyS0"]
    fixed = ["con=null", "con0=null,fd:1", *line, "noreboot", "panic=-1", "quiet"]
    places = ["umid=m", f"uml_dir={config.dir}", f"mem={config.memory_bytes >> 10}k"]
    return [*places, *initrd, *fixed, *disks, *nics, *config.append]


def disk_word(number: int, disk: Disk) -> str:
    """As on its command line and for `config`. "c": the file is locked by nobody; "r": it is only read."""
    return f"ubd{chr(ord('a') + number)}{'r' if disk.read_only else ''}c={disk.path}"


def nic_word(number: int, nic: Nic) -> str:
    return f"vec{number}:transport=tap,ifname={nic.tap},depth=128,gro=1,mac={nic.mac}"


class Mconsole:
    """The management console: a datagram for each command, and its answer in one or several."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "m" / "mconsole"

    async def answers(self) -> bool:
        """Whether it knows its last device, the serial line: before that it refuses what it will know."""
        try:
            return bool(await self.call("config ssl0", timeout_s=1.0))
        except (Unavailable, DeadlineExceeded, HelperFailed):
            return False

    async def call(self, command: str, *, timeout_s: float = ANSWERS_WITHIN_S) -> str:
        """Its words. HelperFailed when it refuses, Unavailable when it has gone, DeadlineExceeded when it hangs."""
        own = self._directory / f"c{os.getpid()}-{next(_counter)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.bind(str(own))  # by name: the guest answers out of another network namespace
                async with timeout(timeout_s):
                    return await self._exchange(sock, command)
            except TimeoutError:
                late = f"User-mode Linux did not answer {command!r} within {timeout_s:g} s"
                raise DeadlineExceeded(late, stage="vmm") from None
            except OSError as error:
                raise Unavailable("User-mode Linux has gone", stage="vmm", cause=error.strerror or "") from None
            finally:
                own.unlink(missing_ok=True)

    async def _exchange(self, sock: socket.socket, command: str) -> str:
        loop = asyncio.get_running_loop()
        data = command.encode()
        sock.connect(str(self._path))
        await loop.sock_sendall(sock, _REQUEST.pack(_MAGIC, _VERSION, len(data)) + data)
        words, failed, more = b"", 0, 1
        while more:
            answer = await loop.sock_recv(sock, 65536)
            if len(answer) < _REQUEST.size:
                raise HelperFailed("User-mode Linux's answer is too short", stage="vmm")
            failed, more, length = _REQUEST.unpack_from(answer)
            words += answer[_REQUEST.size : _REQUEST.size + length].rstrip(b"\0")
            if len(words) > _MAX_WORDS_BYTES:
                raise HelperFailed("User-mode Linux's answer has no end", stage="vmm")
        text = words.decode(errors="replace").strip()
        if failed:
            raise HelperFailed(
                f"User-mode Linux refused {command.split('=', maxsplit=1)[0]!r}", stage="vmm", cause=readable(text)
            )
        return text


class UmlMachine(Machine):
    """See the contract. What is plugged in, and whether it is paused, is beside it in files, for another daemon."""

    def __init__(self, console: Mconsole, config: MachineConfig, pidfd: int, pid: int) -> None:
        self.config = self._config = config
        self._console, self._pidfd, self._pid = console, pidfd, pid
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, self._ended)
        self._paused = config.dir / "paused"
        self._plugged = config.dir / "plugged"
        self._plugged.mkdir(exist_ok=True)

    def _ended(self) -> None:
        """A kernel that ends in order removes its directory."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if not self._end.done():
            self._end.set_result("killed" if (self._config.dir / "m").exists() else "shutdown")

    async def boot(self, *, timeout_s: float) -> None:
        """It runs as soon as its program does."""

    async def status(self) -> MachineStatus:
        detail = await self._console.call("version")
        state = "paused" if self._paused.exists() else "running"
        return MachineStatus("paused" if state == "paused" else "running", 1, self._config.memory_bytes, detail)

    async def wait(self) -> str:
        return await asyncio.shield(self._end)

    async def pause(self) -> None:
        await self._console.call("stop")
        self._paused.touch()

    async def resume(self) -> None:
        await self._console.call("go")
        self._paused.unlink(missing_ok=True)

    async def save(self, directory: Path) -> None:
        raise Unsupported("User-mode Linux cannot be saved", feature="save")

    async def add(self, device: Device) -> None:
        if not isinstance(device, Disk | Nic):
            raise Unsupported("User-mode Linux takes disks and interfaces only", feature="hotplug")
        if (self._plugged / device.id).exists():
            raise HelperFailed(f"{device.id} is plugged in already", stage="vmm")
        number = self._free("ubd" if isinstance(device, Disk) else "vec")
        word = disk_word(number, device) if isinstance(device, Disk) else nic_word(number, device)
        await self._console.call(f"config {word}")
        (self._plugged / device.id).write_text(self._name(device, number))

    def _name(self, device: Disk | Nic, number: int) -> str:
        return f"ubd{chr(ord('a') + number)}" if isinstance(device, Disk) else f"vec{number}"

    def _free(self, kind: str) -> int:
        """A number that neither the first devices have nor those that were plugged in."""
        first, most = (self._config.disks, MOST_DISKS) if kind == "ubd" else (self._config.nics, MOST_NICS)
        taken = {path.read_text() for path in self._plugged.iterdir()}
        for number in range(max(len(first), 1 if kind == "ubd" else 0), most):  # ubda is there, if only in name
            if f"{kind}{chr(ord('a') + number) if kind == 'ubd' else number}" not in taken:
                return number
        raise ResourceExhausted(f"the machine has no room for another device: {most} are plugged in", stage="vmm")

    async def remove(self, device_id: str, *, timeout_s: float) -> None:
        place = self._plugged / device_id
        if place.exists():
            await self._console.call(f"remove {place.read_text()}", timeout_s=timeout_s)
            place.unlink(missing_ok=True)

    async def resize(self, *, processors: int | None = None, memory_bytes: int | None = None) -> MachineStatus:
        if processors not in (None, 1) or memory_bytes not in (None, self._config.memory_bytes):
            raise Unsupported("User-mode Linux keeps the size that it has", feature="resize")
        return await self.status()

    async def metrics(self) -> Mapping[str, float]:
        words = (await self._console.call("proc meminfo")).split()
        return {"memory_free_bytes": float(words[words.index("MemFree:") + 1]) * 1024} if "MemFree:" in words else {}

    async def quit(self, *, timeout_s: float) -> None:
        """Its own end takes its helpers along; SIGKILL does not, so they are looked up before it."""
        with contextlib.suppress(Unavailable, DeadlineExceeded, HelperFailed):
            await self._console.call("halt", timeout_s=timeout_s / 2)
        helpers = [self._pidfd, *self._helpers()]
        for helper in helpers:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(helper, signal.SIGKILL)
        for helper in helpers[1:]:
            os.close(helper)

    def _helpers(self) -> list[int]:
        found: list[int] = []
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{self._pid}/task").iterdir():
                for pid in (task / "children").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        found.append(os.pidfd_open(int(pid)))
        return found

    async def close(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._end.cancel()

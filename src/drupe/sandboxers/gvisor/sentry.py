"""Calls to a running sentry, over the control socket of its sandbox.

runsc's own commands do the same: each starts a program of 30 MB, makes one such call and ends. A call made here takes
half a millisecond. The protocol is gVisor's urpc: one JSON object there, one back, descriptors by SCM_RIGHTS
(pkg/urpc, runsc/boot/controller.go). Tried with runsc 20240729; the doctor's probe of this kind goes the same way.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.errors import DeadlineExceeded, HelperFailed, NotFound
from drupe.linux.unix_sockets import send_fds, short_name
from drupe.oci.capabilities import ALL
from drupe.rpc.timeouts import timeout
from drupe.sandboxers.gvisor.records import ROOT_ID

ANSWERS_WITHIN_S = 3.0  # a sentry that lives answers at once; one that was stopped or hangs never
_ONE, _ALL, _FOREGROUND = 0, 1, 2  # boot.SignalDeliveryMode


class Sentry:
    """The kernel of one sandbox. Every call raises NotFound when it has ended, DeadlineExceeded when it is stopped or
    hangs, HelperFailed with its own words as `cause` when it refuses."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    async def call(
        self, method: str, argument: Any = None, *, fds: Sequence[int] = (), within_s: float | None = ANSWERS_WITHIN_S
    ) -> Any:
        """One request and its result."""
        try:
            async with timeout(within_s):
                answer = await self._talk(json.dumps({"method": method, "arg": argument}).encode(), fds)
        except TimeoutError:
            raise DeadlineExceeded(
                "the sandbox does not answer",
                stage="sentry",
                cause=f"no answer to {method} within {within_s:g} s",
                hint="its sentry process was stopped or hangs; remove the pod by force",
                may_have_run=True,
            ) from None
        except OSError as error:
            raise NotFound("the sandbox has ended", cause=error.strerror or "") from None
        if not answer["success"]:
            raise HelperFailed("the sandbox refused a request", stage="sentry", cause=str(answer["err"]))
        return answer["result"]

    async def _talk(self, request: bytes, fds: Sequence[int]) -> Mapping[str, Any]:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            with short_name(self._path) as path:
                await loop.sock_connect(sock, path)
            sent = send_fds(sock, request, fds) if fds else 0
            await loop.sock_sendall(sock, request[sent:])
            received = b""
            while chunk := await loop.sock_recv(sock, 65536):
                received += chunk
                try:
                    answer: Mapping[str, Any] = json.loads(received)
                except ValueError:
                    continue
                return answer
        raise ConnectionResetError("it closed the connection")

    # -- containers ---------------------------------------------------------------------------------------------

    async def wait(self, container: str) -> int:
        """The wait status (wait(2)) of a container's first process, once it has ended."""
        return int(await self.call("containerManager.Wait", container, within_s=None))

    async def ended(self, container: str) -> int:
        """The same of one that is known to have ended."""
        return int(await self.call("containerManager.Wait", container))

    async def signal(self, container: str, signal: int, *, pid: int = 0, everything: bool = False) -> None:
        """pid: one process, as the sentry counts them; 0 is the container's first."""
        mode = _ALL if everything else _ONE
        await self._signal(container, signal, pid, mode)

    async def signal_foreground(self, container: str, signal: int, *, pid: int = 0) -> None:
        """To the foreground group of the terminal of a process."""
        await self._signal(container, signal, pid, _FOREGROUND)

    async def _signal(self, container: str, signal: int, pid: int, mode: int) -> None:
        argument = {"CID": container, "Signo": signal, "PID": pid, "Mode": mode}
        await self.call("containerManager.Signal", argument)

    async def destroy(self, container: str) -> None:
        """End a container beside the first and forget it."""
        await self.call("containerManager.DestroySubcontainer", container)

    async def processes(self, container: str) -> list[dict[str, Any]]:
        """What `runsc ps` shows: uid, pid, ppid, cmd and more for each."""
        return await self.call("containerManager.Processes", container) or []

    async def counters(self, container: str) -> dict[str, Any]:
        """What `runsc events --stats` is made from: `event` of the sandbox, `containerUsage` in ns of CPU."""
        found: dict[str, Any] = await self.call("containerManager.Event", container)
        return found

    async def forward(self, port: int, fd: int) -> None:
        """Connect a stream to a TCP port on the sandbox's loopback."""
        await self.call("containerManager.PortForward", {"ContainerID": ROOT_ID, "Port": port}, fds=[fd])

    # -- execs --------------------------------------------------------------------------------------------------

    async def execute(
        self, container: str, process: Mapping[str, Any], fds: Sequence[int], *, program: int | None = None
    ) -> int:
        """Start a further process with `fds` as its 0, 1, 2…; its pid as the sentry counts them. program: a descriptor
        of what it executes, instead of a file of the container's."""
        # one that is stopped would hold the descriptors in its queue, and with them whoever waits for their end
        await self.call("containerManager.ContainerRuntimeState", container)
        arguments = _exec_args(container, process, len(fds))
        sent = fds if program is None else [*fds, program]
        return int(await self.call("containerManager.ExecuteAsync", arguments, fds=sent))

    async def wait_pid(self, container: str, pid: int) -> int:
        """The wait status of a process that `execute` started, once it has ended; told once."""
        return int(await self.call("containerManager.WaitPID", {"PID": pid, "CID": container}, within_s=None))


def _exec_args(container: str, process: Mapping[str, Any], descriptors: int) -> dict[str, Any]:
    """control.ExecArgs of a runtime-spec process."""
    user = process["user"]
    return {
        "argv": process["args"],
        "envv": process.get("env", []),
        "wd": process.get("cwd", "/"),
        "KUID": user["uid"],
        "KGID": user["gid"],
        "ExtraKGIDs": user.get("additionalGids", []),
        "Capabilities": _capabilities(process.get("capabilities")),
        "StdioIsPty": bool(process.get("terminal")),
        "GuestFDs": list(range(descriptors)),
        "ContainerID": container,
    }


def _capabilities(sets: Mapping[str, Sequence[str]] | None) -> dict[str, int] | None:
    """auth.TaskCapabilities: bit masks. None: those that the user id brings."""
    if sets is None:
        return None
    names = ("permitted", "inheritable", "effective", "bounding", "ambient")
    return {f"{name.capitalize()}Caps": _mask(sets.get(name, ())) for name in names}


def _mask(names: Sequence[str]) -> int:
    return sum(1 << ALL.index(name) for name in names)

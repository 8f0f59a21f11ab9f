"""startContainer hooks: programs of the container's, run in it before its own takes its first step (runtime-spec,
config.md, POSIX-platform Hooks). As with runc: as the container's user, with its rights, in its working directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import msgspec

from drupe.errors import DrupeError
from drupe.linux.memfd import memory_file
from drupe.sandboxers.appkernel.config import process_config
from drupe.sandboxers.appkernel.line import Event, KernelLine
from drupe.sandboxers.kept.hooks import LONGEST_S, TOLD, failed

PHASE = "startContainer"
_EXEC = "hook:"  # no exec of a user's is called so


def hooks_of(oci: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Those that are to run inside."""
    return (oci.get("hooks") or {}).get(PHASE) or ()


class InsideHooks:
    """Runs them, each as a process that joins a container whose first one waits to begin."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, str], asyncio.Future[Mapping[str, Any]]] = {}

    def ended(self, event: Event) -> bool:
        """The kernel tells an end; whether it was that of a hook."""
        if not event["exec"].startswith(_EXEC):
            return False
        waiting = self._ends.pop((event["container"], event["exec"]), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(event["exit"])
        return True

    async def run(self, line: KernelLine, container: str, oci: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """All of them, one after the other. HelperFailed: one failed, or took longer than it may."""
        for number, hook in enumerate(hooks_of(oci)):
            key = (container, f"{_EXEC}{number}")
            self._ends[key] = asyncio.get_running_loop().create_future()
            try:
                with tempfile.TemporaryFile() as said:
                    await self._run(line, key, (hook, process_config(_process(oci, hook))), state, said)
            finally:
                self._ends.pop(key, None)

    async def _run(
        self,
        line: KernelLine,
        key: tuple[str, str],
        what: tuple[Mapping[str, Any], Mapping[str, Any]],
        state: Mapping[str, Any],
        said: BinaryIO,
    ) -> None:
        end, (container, name), (hook, config) = self._ends[key], key, what
        told = memory_file("state", msgspec.json.encode(state))
        try:
            os.lseek(told, 0, os.SEEK_SET)
            fds = {"stdin": told, "stdout": said.fileno(), "stderr": said.fileno()}
            await line.call("exec", container=container, exec=name, config=config, fds=fds)
        except DrupeError as error:
            raise failed(PHASE, hook["path"], str(error)) from None
        finally:
            os.close(told)
        try:
            how = await asyncio.wait_for(end, hook.get("timeout") or LONGEST_S)
        except TimeoutError:
            with contextlib.suppress(DrupeError):
                await line.call("kill", container=container, exec=name, signal=9, reach="family")
            raise failed(PHASE, hook["path"], "it took longer than it may") from None
        await line.forget(container, name)
        if how["code"]:
            said.seek(0)
            words = said.read().decode(errors="replace").strip()
            raise failed(PHASE, hook["path"], words[-TOLD:] or f"exit code {how['code']}")


def _process(oci: Mapping[str, Any], hook: Mapping[str, Any]) -> dict[str, Any]:
    """The container's own process, but for what a hook says by itself."""
    args = [hook["path"], *(hook.get("args") or ())[1:]]
    return {**oci["process"], "args": args, "env": list(hook.get("env") or ()), "terminal": False, "consoleSize": None}

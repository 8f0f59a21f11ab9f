"""OCI hooks of containers that no OCI runtime makes: programs of the host, with the container's state at their standard
input (runtime-spec, config.md, POSIX-platform Hooks)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.errors import HelperFailed, Unsupported
from drupe.rpc.timeouts import timeout

_INSIDE = ("createContainer", "startContainer")  # of these, only what runs in the container's namespaces is meant
_LONGEST_S = 600.0  # of one without a timeout of its own: a caller must not wait for ever
_TOLD = 400  # characters of what it said


def refuse_inside(oci: Mapping[str, Any], kind: str) -> None:
    """Raise Unsupported for hooks that would have to run in namespaces that the host does not have."""
    for phase in _INSIDE:
        if (oci.get("hooks") or {}).get(phase):
            raise Unsupported(
                f"{phase} hooks are not run by {kind} sandboxes",
                kind=kind, feature="hooks", cause="the host has no namespaces of the container's to run them in",
                hint="createRuntime, poststart and poststop hooks are run on the host",
            )  # fmt: skip


async def run_hooks(oci: Mapping[str, Any], *phases: str, state: Mapping[str, Any]) -> None:
    """Those of these phases, one after the other. HelperFailed: one failed, or took longer than it may."""
    for phase in phases:
        for hook in (oci.get("hooks") or {}).get(phase) or ():
            await _run(phase, hook, json.dumps(state).encode())


async def _run(phase: str, hook: Mapping[str, Any], state: bytes) -> None:
    path = hook["path"]
    env = dict(word.split("=", 1) for word in hook.get("env") or () if "=" in word)
    argv = list(hook.get("args") or ()) or [path]
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, executable=path, env=env, stdin=pipe, stdout=asyncio.subprocess.DEVNULL, stderr=pipe,
            cwd="/", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise _failed(phase, path, error.strerror or "") from None
    try:
        async with timeout(hook.get("timeout") or _LONGEST_S):
            _, said = await process.communicate(state)
    except TimeoutError:
        raise _failed(phase, path, "it took longer than it may") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode:
        raise _failed(phase, path, said.decode(errors="replace").strip()[-_TOLD:] or f"exit code {process.returncode}")


def _failed(phase: str, path: str, why: str) -> HelperFailed:
    return HelperFailed(f"the {phase} hook {Path(path).name} failed", stage="hooks", cause=why)

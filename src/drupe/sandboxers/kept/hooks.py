"""OCI hooks of containers that no OCI runtime makes: programs of the host, with the container's state at their standard
input (runtime-spec, config.md, POSIX-platform Hooks)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.errors import DrupeError, HelperFailed, Unsupported
from drupe.keeper.client import Keeper

_INSIDE = ("createContainer", "startContainer")  # of these, only what runs in the container's namespaces is meant
LONGEST_S = 600.0  # of one without a timeout of its own: a caller must not wait for ever
TOLD = 400  # characters of what it said


def refuse_inside(oci: Mapping[str, Any], kind: str, *, but: tuple[str, ...] = ()) -> None:
    """Raise Unsupported for hooks that would have to run in namespaces that the host does not have, and for those of
    programs that go by another name. but: phases that the sandbox's own kernel runs."""
    for phase in _INSIDE:
        if phase not in but and (oci.get("hooks") or {}).get(phase):
            raise Unsupported(
                f"{phase} hooks are not run by {kind} sandboxes",
                kind=kind, feature="hooks", cause="the host has no namespaces of the container's to run them in",
                hint=f"{', '.join(('createRuntime', *but, 'poststart'))} and poststop hooks are run",
            )  # fmt: skip
    for hook in (hook for hooks in (oci.get("hooks") or {}).values() for hook in hooks or ()):
        name = Path((hook.get("args") or [hook["path"]])[0]).name
        if name != Path(hook["path"]).name:
            raise Unsupported(f"the hook {hook['path']} cannot be called {name}", kind=kind, feature="hooks")


async def run_hooks(keeper: Keeper, oci: Mapping[str, Any], *phases: str, state: Mapping[str, Any]) -> None:
    """Those of these phases, one after the other. HelperFailed: one failed, or took longer than it may."""
    for phase in phases:
        for hook in (oci.get("hooks") or {}).get(phase) or ():
            await _run(keeper, phase, hook, json.dumps(state))


async def _run(keeper: Keeper, phase: str, hook: Mapping[str, Any], state: str) -> None:
    path = hook["path"]
    env = dict(word.split("=", 1) for word in hook.get("env") or () if "=" in word)
    argv = [path, *(hook.get("args") or ())[1:]]
    try:
        done = await keeper.run(argv, env=env, cwd="/", stdin=state, timeout_s=hook.get("timeout") or LONGEST_S)
    except DrupeError as error:
        raise failed(phase, path, str(error)) from None
    if done.timed_out:
        raise failed(phase, path, "it took longer than it may")
    if done.exit:
        raise failed(phase, path, done.stderr.strip()[-TOLD:] or f"exit code {done.exit}")


def failed(phase: str, path: str, why: str) -> HelperFailed:
    """The error of a hook, by its name."""
    return HelperFailed(f"the {phase} hook {Path(path).name} failed", stage="hooks", cause=why)

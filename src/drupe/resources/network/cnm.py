"""CNM: drupe makes the namespace, and the pod's prestart hooks fill it from outside (Docker's libnetwork way)."""

from __future__ import annotations

import json

from drupe.errors import DeadlineExceeded, HelperFailed
from drupe.resources.network.records import Keeper
from drupe.spec.container import Hook

_TIMEOUT_S = 30.0
# The state on stdin names a process of the namespace: this shell, which lives as long as the hook does.
_WRAPPER = 'sed "s/\\"@pid@\\"/$$/" | "$0" "$@"'


async def run_hooks(keeper: Keeper, hooks: tuple[Hook, ...], *, pod_id: str, netns: str) -> None:
    """Runs hooks in order inside the namespace, each with the OCI state as JSON on its stdin (runtime-spec, State).

    Raises HelperFailed with the hook's own words, DeadlineExceeded.
    """
    state = {"ociVersion": "1.0.2", "id": pod_id, "status": "created", "pid": "@pid@", "bundle": "/"}
    state["annotations"] = {"netns": netns}  # type: ignore[assignment]
    text = json.dumps(state, separators=(",", ":"))
    for hook in hooks:
        argv = ["/bin/sh", "-c", _WRAPPER, hook.path, *hook.args[1:]]
        env = dict(item.partition("=")[::2] for item in hook.env)
        env.setdefault("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        timeout_s = float(hook.timeout_s or _TIMEOUT_S)
        done = await keeper.run(argv, env=env, netns=netns, stdin=text, timeout_s=timeout_s)
        if done.timed_out:
            raise DeadlineExceeded(f"prestart hook {hook.path} took over {timeout_s:g} s", stage="network")
        if done.exit:
            cause = (done.stderr or done.stdout).strip()[-500:]
            raise HelperFailed(f"prestart hook {hook.path} failed ({done.exit})", stage="network", cause=cause)

"""What follows a container's end: restart by policy, the pod's own end, removal; and the pod's time limit."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from drupe.errors import DrupeError
from drupe.state.machine import State

if TYPE_CHECKING:
    from drupe.runtime.container import Container
    from drupe.runtime.pod import Pod

MAX_DELAY_S = 60.0
STEADY_S = 10.0  # a run this long starts the restart delay afresh


async def after_end(container: Container) -> None:
    """Restart the container, or let its pod end with its last one."""
    if container.restart_at:
        return  # somebody waits for that already
    if should_restart(container):
        await restart(container)
    else:
        await settle(container.pod)


def should_restart(container: Container) -> bool:
    """Docker's rules: never after a stop by the user; "on-failure" only after a non-zero exit, `max_retries` times."""
    policy = container.spec.restart
    exit_ = container.status.exit
    if policy.name == "no" or container.stopping or container.pod.state is not State.RUNNING:
        return False
    if policy.name == "on-failure":
        failed = exit_ is None or exit_.code != 0
        return failed and (policy.max_retries == 0 or container.status.restarts < policy.max_retries)
    return True


async def restart(container: Container) -> None:
    """Wait the policy's delay (doubling), then start again unless someone stopped or deleted it meanwhile."""
    ran_s = container.status.finished_at - container.status.started_at
    step = 0 if ran_s >= STEADY_S else container.status.restarts
    delay_s = min(container.spec.restart.delay_s * 2 ** min(step, 20), MAX_DELAY_S)
    container.restart_at = time.time() + delay_s
    await asyncio.sleep(delay_s)
    async with container.pod.lock:
        if container.restart_at == 0.0 or container.state is not State.STOPPED:
            return
        container.status.restarts += 1
        try:
            await container.start()
            return
        except DrupeError as error:
            container.node.note(f"restart of {container.what}: {error}")
    await settle(container.pod)


async def settle(pod: Pod) -> None:
    """Stop (and with `remove` delete) a pod whose containers have all ended, when it was asked to end with them."""
    if not (pod.auto_stop or pod.spec.remove):
        return
    async with pod.lock:
        if pod.is_kept_up or pod.state not in (State.RUNNING, State.FAILED):
            return
        if pod.spec.remove:
            await pod.delete_now()
        else:
            await pod.stop()


async def enforce_deadline(pod: Pod) -> None:
    """End a pod whose time is up: SIGKILL, reported as `Timeout`."""
    await asyncio.sleep(max(0.0, pod.deadline_at - time.time()))
    for container in pod.containers.values():
        container.timed_out = container.is_live
    async with pod.lock:
        if pod.state in (State.RUNNING, State.PAUSED):
            await pod.stop(force=True)
            if pod.spec.remove:
                await pod.delete_now()

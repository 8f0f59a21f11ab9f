"""Health checks: a command run inside the container at intervals, with Docker's states starting, healthy, unhealthy."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from drupe.errors import DrupeError
from drupe.spec.container import ExecSpec, HealthCheck
from drupe.state.machine import State

if TYPE_CHECKING:
    from drupe.runtime.container import Container


async def watch_health(container: Container) -> None:
    """Probe until the container's current run ends. A paused container is not probed."""
    check = container.spec.health
    if check is None or not check.argv:
        return
    run = container.status.started_at
    failures = 0
    _set(container, "starting")
    while _same_run(container, run):
        await asyncio.sleep(check.interval_s)
        if not _same_run(container, run) or container.state is State.PAUSED:
            continue
        if await _probe(container, check):
            failures = 0
            _set(container, "healthy")
        elif time.time() - run >= check.start_period_s:
            failures += 1
            if failures >= check.retries:
                _set(container, "unhealthy")


def _same_run(container: Container, run: float) -> bool:
    return container.is_live and container.status.started_at == run


async def _probe(container: Container, check: HealthCheck) -> bool:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        spec = ExecSpec(argv=check.argv)
        exec_id, _ = await container.execs.start(spec, {"stdin": null, "stdout": null, "stderr": null})
        status = await container.execs.wait(exec_id, timeout_s=check.timeout_s)
        container.execs.forget(exec_id)
    except DrupeError:
        return False
    finally:
        os.close(null)
    return status.code == 0 and status.reason != "Timeout"


def _set(container: Container, health: str) -> None:
    if container.status.health == health:
        return
    container.status.health = health
    container.save()
    container.node.events.publish("container", f"health_status: {health}", container.id, name=container.name)

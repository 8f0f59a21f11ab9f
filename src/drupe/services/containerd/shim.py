"""What `containerd-shim-drupe-v2` asks: where tasks are served, and that what is left of one be removed."""

from __future__ import annotations

import re
import time

from drupe.errors import InvalidArgument
from drupe.services.containerd import leftovers, lives
from drupe.services.containerd.hub import Hub
from drupe.services.containerd.peers import Door, Peer
from drupe.spec.containerd import ShimDelete, ShimDeleted, ShimStart, ShimStarted

_NAME = re.compile(r"containerd-shim-drupe(?:-([a-z0-9]+))?-v[0-9]+")


async def started(hub: Hub, ask: ShimStart) -> ShimStarted:
    """The kind is in the name that the shim was called by: `containerd-shim-drupe-KIND-v2`."""
    named = _NAME.fullmatch(ask.name)
    if named is None:
        raise InvalidArgument(f"{ask.name!r} is no name of drupe's shim", hint="containerd-shim-drupe[-KIND]-v2")
    peer = Peer(grpc=ask.grpc, ttrpc=ask.ttrpc, publish=ask.publish)
    return ShimStarted(address=await hub.address(peer, Door(namespace=ask.namespace, kind=named[1] or "")))


async def deleted(hub: Hub, ask: ShimDelete) -> ShimDeleted:
    """Called after every connection's end, and after a crash: whatever is there is killed and removed."""
    peer = Peer(grpc=ask.grpc, ttrpc=ask.ttrpc)
    task = hub.tasks.find(peer.key, ask.namespace, ask.id)
    if task is None:
        await _remove_sandbox(hub, peer, ask)
        return ShimDeleted(exited_at=time.time())
    exit_ = task.container.status.exit
    await lives.remove(hub.tasks, task)
    return ShimDeleted(
        pid=task.record.pid, exit_status=exit_.code if exit_ else 137, exited_at=exit_.at if exit_ else time.time()
    )


async def _remove_sandbox(hub: Hub, peer: Peer, ask: ShimDelete) -> None:
    """One that its shim served, with all in it: whose connection has ended, containerd tells nothing else."""
    pod = hub.core.pods.get(ask.id)
    if pod is None or not pod.held or (pod.spec.owner, pod.spec.namespace) != (peer.owner, ask.namespace):
        return
    await leftovers.remove(hub.tasks, hub.sandboxes, pod)

"""Sandboxes of which containerd knows nothing: the daemon died before it could answer for one, or a shim was killed
before it could say that one is over.

containerd writes a sandbox down before it asks for it, strikes it out after it has had it removed, and waits for the
end of each that runs. So those that nobody waits for are looked up in its store, and go where it has never heard of
them. Where it does not answer, or has none of ours, nothing is done.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from drupe.errors import DrupeError, Unavailable
from drupe.rpc.containerd import sandbox_controller_pb2 as pb
from drupe.runtime.pod import Pod
from drupe.services.containerd import lives
from drupe.services.containerd.peers import Peer
from drupe.services.containerd.sandboxes import Sandboxes
from drupe.services.containerd.tasks import Tasks

if TYPE_CHECKING:
    import grpc.aio

LOOK_EVERY_S = 30.0
FIRST_LOOK_S = 2.0  # until a containerd that was waiting for the daemon has asked again
_ANSWER_S = 5.0
_GET = "/containerd.services.sandbox.v1.Store/Get"

log = logging.getLogger("drupe")


async def watch(tasks: Tasks, sandboxes: Sandboxes) -> None:
    """Remove them, for ever."""
    await asyncio.sleep(FIRST_LOOK_S)
    while True:
        for peer in tasks.all_peers():
            try:
                for pod in await _unknown(peer, sandboxes):
                    tasks.node.note(f"{pod.what}: removed, for containerd at {peer.grpc} knows nothing of it")
                    await remove(tasks, sandboxes, pod)
            except (DrupeError, ImportError) as error:
                log.debug("what containerd at %s knows is not clear: %s", peer.grpc, error)
        await asyncio.sleep(LOOK_EVERY_S)


async def _unknown(peer: Peer, sandboxes: Sandboxes) -> list[Pod]:
    """Those that are not in its store, if any is: one that has none of ours may keep no such store. Unavailable: it
    does not say. ImportError: gRPC is not installed, which only a Controller needs else."""
    pods = [pod for pod in sandboxes.all() if pod.spec.owner == peer.owner]
    unwaited = [pod for pod in pods if not sandboxes.is_waited(pod.id)]
    if not unwaited or len(pods) == 1:
        return []
    import grpc.aio  # costs 15 MiB, and most daemons that serve no Controller never get here

    async with grpc.aio.insecure_channel(f"unix:{peer.grpc.removeprefix('unix://')}") as channel:
        get: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_GET)
        unknown = [pod for pod in unwaited if not await _is_known(get, pod)]
        others = (pod for pod in pods if pod not in unknown)
        return unknown if unknown and any([await _is_known(get, pod) for pod in others]) else []


async def _is_known(get: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], pod: Pod) -> bool:
    import grpc.aio

    request = pb.StoreGetRequest(sandbox_id=pod.id).SerializeToString()
    try:
        await get(request, timeout=_ANSWER_S, metadata=(("containerd-namespace", pod.spec.namespace),))
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False
        raise Unavailable(f"{error.code().name} {error.details()}") from None
    return True


async def remove(tasks: Tasks, sandboxes: Sandboxes, pod: Pod) -> None:
    """A sandbox with all tasks in it, whatever their state."""
    for task in tasks.in_pod(pod):
        await lives.remove(tasks, task)
    await sandboxes.shutdown(pod.id)

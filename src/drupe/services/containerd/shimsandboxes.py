"""`containerd.runtime.sandbox.v1.Sandbox`, for handlers whose shim serves the sandboxes (`sandboxer = "shim"`).

The shim's name says the kind, as with tasks; no handler's name or options come with these calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message

from drupe.errors import InvalidArgument
from drupe.rpc.containerd import sandbox_shim_pb2 as pb
from drupe.rpc.ttrpc import Call, Method, Services, unary
from drupe.runtime.choosing import WISH
from drupe.services.containerd.events import stamp
from drupe.services.containerd.peers import Door, Peer
from drupe.services.containerd.podspecs import pod_spec
from drupe.services.containerd.sandboxes import Asked, Sandboxes
from drupe.services.containerd.sandboxwords import config_of, end_of, metric_of, platform_of_all, status_of

NAME = "containerd.runtime.sandbox.v1.Sandbox"
Serve = Callable[["SandboxService", Any], Awaitable[Message]]


class SandboxService:
    """The sandboxes of one containerd's namespace and one kind."""

    def __init__(self, sandboxes: Sandboxes, peer: Peer, door: Door) -> None:
        self.sandboxes = sandboxes
        self.peer = peer
        self.door = door

    def services(self) -> Services:
        """For a ttrpc server."""
        return {NAME: {name: _method(self, *each) for name, each in _METHODS.items()}}

    def kind(self, annotations: dict[str, str]) -> str:
        """That of the shim's name. Raises InvalidArgument for an annotation that says otherwise."""
        wished = annotations.get(WISH, "")
        if self.door.kind and wished and wished != self.door.kind:
            said = f"its shim is that of {self.door.kind}, the annotation {WISH} asks for {wished}"
            hint = "a shim's name decides for its pods"
            raise InvalidArgument(f"the pod's kind of sandbox is not clear: {said}", hint=hint)
        return self.door.kind


def _method(service: SandboxService, request: type[Message], serve: Serve) -> Method:
    """What changes something goes on to its end, though its caller has gone or waits no longer."""

    async def handler(_: Call, message: Any) -> Message:
        return await asyncio.shield(serve(service, message))

    return unary(request, handler)


async def create(service: SandboxService, asked: pb.CreateSandboxRequest) -> Message:
    """The CRI has made the pod's network and tells where."""
    config = config_of(asked.options)
    kind = service.kind({**config.annotations, **asked.annotations})
    place = {"owner": service.peer.owner, "namespace": service.door.namespace, "netns": asked.netns_path}
    spec = pod_spec(asked.sandbox_id, config, kind=kind, **place)
    handler = f"drupe-{kind}" if kind else "drupe"
    await service.sandboxes.create(Asked(spec=spec, config=config.SerializeToString(), handler=handler))
    return pb.CreateSandboxResponse()


async def start(service: SandboxService, asked: pb.StartSandboxRequest) -> Message:
    """All or nothing."""
    pod = await service.sandboxes.start(asked.sandbox_id)
    return pb.StartSandboxResponse(pid=pod.info.pid, created_at=stamp(pod.status.created_at))


async def platform(service: SandboxService, asked: pb.PlatformRequest) -> Message:
    return pb.PlatformResponse(platform=platform_of_all())


async def stop(service: SandboxService, asked: pb.StopSandboxRequest) -> Message:
    await service.sandboxes.stop(asked.sandbox_id, timeout_s=float(asked.timeout_secs))
    return pb.StopSandboxResponse()


async def wait(service: SandboxService, asked: pb.WaitSandboxRequest) -> Message:
    """Held until its end."""
    return pb.WaitSandboxResponse(**end_of(await service.sandboxes.wait(asked.sandbox_id)))


async def status(service: SandboxService, asked: pb.SandboxStatusRequest) -> Message:
    pod = service.sandboxes.pod(asked.sandbox_id)
    return pb.SandboxStatusResponse(**status_of(service.sandboxes, pod, verbose=asked.verbose))


async def ping(service: SandboxService, asked: pb.PingRequest) -> Message:
    """NotFound when it is gone."""
    service.sandboxes.pod(asked.sandbox_id)
    return pb.PingResponse()


async def shutdown(service: SandboxService, asked: pb.ShutdownSandboxRequest) -> Message:
    """Its end, not that of the daemon, which serves others too."""
    await service.sandboxes.shutdown(asked.sandbox_id)
    return pb.ShutdownSandboxResponse()


async def metrics(service: SandboxService, asked: pb.SandboxMetricsRequest) -> Message:
    return pb.SandboxMetricsResponse(metrics=await metric_of(service.sandboxes, asked.sandbox_id))


_METHODS: dict[str, tuple[type[Message], Serve]] = {
    "CreateSandbox": (pb.CreateSandboxRequest, create),
    "StartSandbox": (pb.StartSandboxRequest, start),
    "Platform": (pb.PlatformRequest, platform),
    "StopSandbox": (pb.StopSandboxRequest, stop),
    "WaitSandbox": (pb.WaitSandboxRequest, wait),
    "SandboxStatus": (pb.SandboxStatusRequest, status),
    "PingSandbox": (pb.PingRequest, ping),
    "ShutdownSandbox": (pb.ShutdownSandboxRequest, shutdown),
    "SandboxMetrics": (pb.SandboxMetricsRequest, metrics),
}

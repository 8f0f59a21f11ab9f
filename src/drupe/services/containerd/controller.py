"""containerd's Sandbox Controller (containerd.services.sandbox.v1.Controller) over gRPC, for its `[proxy_plugins]`.

Importing this costs 15 MiB: the daemon does so only where the node's configuration says that containerd is served.
Facts of the protocol: docs/containerd.md.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import Message

from drupe.errors import DrupeError, InvalidArgument, in_a_line
from drupe.rpc.containerd import sandbox_controller_pb2 as pb
from drupe.rpc.cri import api_pb2 as cri
from drupe.rpc.ttrpc.service import parse
from drupe.services.containerd.events import stamp
from drupe.services.containerd.handlers import handler_of, kind_asked
from drupe.services.containerd.podspecs import pod_spec
from drupe.services.containerd.sandboxes import Asked, Sandboxes
from drupe.services.containerd.sandboxwords import config_of, end_of, metric_of, platform_of_all, status_of

SERVICE = "containerd.services.sandbox.v1.Controller"
VERSION = 3  # of the Task service at the address: containerd 2.0.6 and later take nothing less
_NAMESPACE = "containerd-namespace"
_UPDATED = "updated-resources"
# a containerd that comes back asks for the end of all its pods at once; by default gRPC drops some of more than 1000
_OPTIONS = (("grpc.server.max_pending_requests", 8192), ("grpc.server.max_pending_requests_hard_limit", 16384))

log = logging.getLogger("drupe")
Call = Callable[[Any, str], Awaitable[Message]]


class Controller:
    """One method for each call. address: of the Task service for one of containerd's namespaces ("unix:///…").
    owner: of its pods."""

    def __init__(self, sandboxes: Sandboxes, *, address: Callable[[str], Awaitable[str]], owner: str) -> None:
        self._sandboxes = sandboxes
        self._address_of = address
        self._owner = owner
        self._addresses: dict[str, str] = {}

    async def _address(self, namespace: str) -> str:
        """As containerd dials it: protocol, plus sign, address."""
        if namespace not in self._addresses:
            self._addresses[namespace] = f"ttrpc+{await self._address_of(namespace)}"
        return self._addresses[namespace]

    async def create(self, asked: pb.ControllerCreateRequest, namespace: str) -> pb.ControllerCreateResponse:
        """The CRI has made the pod's network and tells where."""
        config = config_of(asked.options)
        annotations = {**config.annotations, **asked.annotations}
        kind = kind_asked(asked.sandbox, annotations)
        place = {"owner": self._owner, "namespace": namespace, "netns": asked.netns_path}
        spec = pod_spec(asked.sandbox_id, config, kind=kind, **place)
        handler = handler_of(asked.sandbox)
        await self._sandboxes.create(Asked(spec=spec, config=config.SerializeToString(), handler=handler))
        return pb.ControllerCreateResponse(sandbox_id=asked.sandbox_id)

    async def start(self, asked: pb.ControllerStartRequest, _: str) -> pb.ControllerStartResponse:
        """All or nothing: containerd does not ask for what a failed start left."""
        pod = await self._sandboxes.start(asked.sandbox_id)
        return pb.ControllerStartResponse(
            sandbox_id=pod.id,
            pid=pod.info.pid,
            created_at=stamp(pod.status.created_at),
            address=await self._address(pod.spec.namespace),
            version=VERSION,
            labels={"oci_runtime_type": f"drupe-{pod.kind}"},
        )

    async def platform(self, asked: pb.ControllerPlatformRequest, _: str) -> pb.ControllerPlatformResponse:
        """What containerd writes config.json for: Linux, also where a module is run."""
        self._sandboxes.pod(asked.sandbox_id)
        return pb.ControllerPlatformResponse(platform=platform_of_all())

    async def stop(self, asked: pb.ControllerStopRequest, _: str) -> pb.ControllerStopResponse:
        await asyncio.shield(self._sandboxes.stop(asked.sandbox_id, timeout_s=float(asked.timeout_secs)))
        return pb.ControllerStopResponse()

    async def wait(self, asked: pb.ControllerWaitRequest, _: str) -> pb.ControllerWaitResponse:
        return pb.ControllerWaitResponse(**end_of(await self._sandboxes.wait(asked.sandbox_id)))

    async def status(self, asked: pb.ControllerStatusRequest, _: str) -> pb.ControllerStatusResponse:
        """Asked several times for each of the CRI's calls: nothing is done but looking."""
        pod = self._sandboxes.pod(asked.sandbox_id)
        return pb.ControllerStatusResponse(
            **status_of(self._sandboxes, pod, verbose=asked.verbose),
            address=await self._address(pod.spec.namespace),
            version=VERSION,
        )

    async def shutdown(self, asked: pb.ControllerShutdownRequest, _: str) -> pb.ControllerShutdownResponse:
        await asyncio.shield(self._sandboxes.shutdown(asked.sandbox_id))
        return pb.ControllerShutdownResponse()

    async def metrics(self, asked: pb.ControllerMetricsRequest, _: str) -> pb.ControllerMetricsResponse:
        return pb.ControllerMetricsResponse(metrics=await metric_of(self._sandboxes, asked.sandbox_id))

    async def update(self, asked: pb.ControllerUpdateRequest, _: str) -> pb.ControllerUpdateResponse:
        """UpdatePodSandboxResources (containerd 2.3 and later) sends the new sums of the containers' limits."""
        await self._sandboxes.update(asked.sandbox_id, _linux_of(asked))
        return pb.ControllerUpdateResponse()


def _linux_of(asked: pb.ControllerUpdateRequest) -> cri.LinuxPodSandboxConfig:
    """The limits, in the extension in which the CRI keeps those that it was told last: JSON by protobuf's names."""
    try:
        told = json.loads(asked.sandbox.extensions[_UPDATED].value) if _UPDATED in asked.sandbox.extensions else {}
        fields = {"resources": told.get("Resources") or {}, "overhead": told.get("Overhead") or {}}
        return json_format.ParseDict(fields, cri.LinuxPodSandboxConfig())
    except (ValueError, AttributeError, json_format.ParseError) as error:
        raise InvalidArgument(f"the pod's new limits cannot be read: {error}") from None


# -- gRPC -------------------------------------------------------------------------------------------------------------


async def serve(controller: Controller, socket: Path) -> grpc.aio.Server:
    """Answer at a unix socket, for root alone. Raises OSError when there is no place for it."""
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((_handlers(controller),))
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{socket}")
    except RuntimeError as error:
        raise OSError(f"cannot listen at {socket}: {error}") from None
    finally:
        os.umask(before)
    await server.start()
    return server


def _handlers(controller: Controller) -> grpc.GenericRpcHandler:
    """Each call of the service's description with the method of its name."""
    methods = pb.DESCRIPTOR.services_by_name["Controller"].methods
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _answer(getattr(controller, method.name.lower()), method.name, getattr(pb, method.input_type.name)),
            response_serializer=lambda message: message.SerializeToString(),
        )
        for method in methods
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _answer(call: Call, name: str, request: type[Message]) -> Callable[[Any, Any], Awaitable[Message]]:
    """The request comes as bytes: gRPC itself has no word for one that cannot be read."""

    async def answer(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        namespace = dict(context.invocation_metadata() or ()).get(_NAMESPACE, "default")
        try:
            return await call(parse(request, data), str(namespace))
        except DrupeError as error:
            text = f"{in_a_line(error)} (hint: {error.hint})" if error.hint else in_a_line(error)
            await context.abort(grpc.StatusCode[error.code], text)
        except Exception:
            log.exception("containerd's call %s", name)
            await context.abort(grpc.StatusCode.INTERNAL, f"a bug in drupe: {name} failed, see the daemon's log")
        raise AssertionError  # abort has raised

    return answer

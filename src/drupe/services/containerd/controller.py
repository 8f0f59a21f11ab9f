"""containerd's Sandbox Controller (containerd.services.sandbox.v1.Controller) over gRPC, for its `[proxy_plugins]`.

Importing this costs 15 MiB: the daemon does so only where the node's configuration says that containerd is served.
Facts of the protocol: docs/containerd.md.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from drupe.errors import DrupeError, InvalidArgument
from drupe.rpc.containerd import sandbox_controller_pb2 as pb
from drupe.rpc.containerd.metrics_pb2 import Metric
from drupe.rpc.containerd.platform_pb2 import Platform
from drupe.rpc.cri import api_pb2 as cri
from drupe.runtime.pod import Pod
from drupe.services.containerd.events import stamp
from drupe.services.containerd.handlers import handler_of, kind_asked
from drupe.services.containerd.metrics import metrics
from drupe.services.containerd.podspecs import pod_spec
from drupe.services.containerd.sandboxes import Asked, Sandboxes
from drupe.spec.base import plain
from drupe.state.machine import State

SERVICE = "containerd.services.sandbox.v1.Controller"
VERSION = 3  # of the Task service at the address: containerd 2.0.6 and later take nothing less
_NAMESPACE = "containerd-namespace"
_UPDATED = "updated-resources"
_CONFIG = ("type.googleapis.com/runtime.v1.PodSandboxConfig", "runtime.v1.PodSandboxConfig")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}

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
        config = _config_of(asked)
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
        machine = platform.machine()
        return pb.ControllerPlatformResponse(
            platform=Platform(os="linux", architecture=_MACHINES.get(machine, machine))
        )

    async def stop(self, asked: pb.ControllerStopRequest, _: str) -> pb.ControllerStopResponse:
        await asyncio.shield(self._sandboxes.stop(asked.sandbox_id, timeout_s=float(asked.timeout_secs)))
        return pb.ControllerStopResponse()

    async def wait(self, asked: pb.ControllerWaitRequest, _: str) -> pb.ControllerWaitResponse:
        pod = await self._sandboxes.wait(asked.sandbox_id)
        code = 255 if pod.state is State.FAILED else 0
        return pb.ControllerWaitResponse(exit_status=code, exited_at=stamp(pod.status.finished_at or time.time()))

    async def status(self, asked: pb.ControllerStatusRequest, _: str) -> pb.ControllerStatusResponse:
        """Asked several times for each of the CRI's calls: nothing is done but looking."""
        pod = self._sandboxes.pod(asked.sandbox_id)
        live = pod.state in (State.RUNNING, State.PAUSED)
        return pb.ControllerStatusResponse(
            sandbox_id=pod.id,
            pid=pod.info.pid if live else 0,
            state="SANDBOX_READY" if live else "SANDBOX_NOTREADY",
            info=self._info(pod) if asked.verbose else {},
            created_at=stamp(pod.status.created_at),
            exited_at=None if live else stamp(pod.status.finished_at),
            address=await self._address(pod.spec.namespace),
            version=VERSION,
        )

    def _info(self, pod: Pod) -> dict[str, str]:
        """What `crictl inspectp` shows: JSON as containerd's own, and the pod as drupe has it."""
        config, handler = self._sandboxes.asked(pod.id)
        info = {
            "pid": pod.info.pid,
            "processStatus": str(pod.state),
            "runtimeHandler": handler,
            "runtimeType": f"drupe-{pod.kind}",
            "config": json_format.MessageToDict(config, preserving_proto_field_name=True),
            "drupe": {**plain(pod.record()), "cgroup": pod.cgroup, "namespaces": pod.info.namespaces},
        }
        return {"info": json.dumps(info)}

    async def shutdown(self, asked: pb.ControllerShutdownRequest, _: str) -> pb.ControllerShutdownResponse:
        await asyncio.shield(self._sandboxes.shutdown(asked.sandbox_id))
        return pb.ControllerShutdownResponse()

    async def metrics(self, asked: pb.ControllerMetricsRequest, _: str) -> pb.ControllerMetricsResponse:
        stats = await self._sandboxes.stats(asked.sandbox_id)
        metric = Metric(
            timestamp=stamp(stats.at), id=asked.sandbox_id, data=metrics(stats, version=self._sandboxes.cgroup_version)
        )
        return pb.ControllerMetricsResponse(metrics=metric)

    async def update(self, asked: pb.ControllerUpdateRequest, _: str) -> pb.ControllerUpdateResponse:
        """UpdatePodSandboxResources (containerd 2.3 and later) sends the new sums of the containers' limits."""
        await self._sandboxes.update(asked.sandbox_id, _linux_of(asked))
        return pb.ControllerUpdateResponse()


def _config_of(asked: pb.ControllerCreateRequest) -> cri.PodSandboxConfig:
    if not asked.options.type_url:
        return cri.PodSandboxConfig()
    if asked.options.type_url not in _CONFIG:
        raise InvalidArgument(f"options of type {asked.options.type_url!r} are not those of a pod")
    try:
        return cri.PodSandboxConfig.FromString(asked.options.value)
    except DecodeError:
        raise InvalidArgument("the pod's configuration cannot be read") from None


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
    server = grpc.aio.server()
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
    answers = {method.name: _answer(getattr(controller, method.name.lower()), method.name) for method in methods}
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        method.name: grpc.unary_unary_rpc_method_handler(
            answers[method.name],
            request_deserializer=getattr(pb, method.input_type.name).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for method in methods
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _answer(call: Call, name: str) -> Callable[[Any, Any], Awaitable[Message]]:
    async def answer(asked: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        namespace = dict(context.invocation_metadata() or ()).get(_NAMESPACE, "default")
        try:
            return await call(asked, str(namespace))
        except DrupeError as error:
            text = f"{error} (hint: {error.hint})" if error.hint else str(error)
            await context.abort(grpc.StatusCode[error.code], text)
        except Exception:
            log.exception("containerd's call %s", name)
            await context.abort(grpc.StatusCode.INTERNAL, f"a bug in drupe: {name} failed, see the daemon's log")
        raise AssertionError  # abort has raised

    return answer

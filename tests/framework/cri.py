"""A client of the Container Runtime Interface: every call by its name, and the few that make pods and containers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from drupe.rpc.cri import api_pb2 as api
from framework.leaks import wait_until

TIMEOUT_S = 60.0


class Cri:
    """`client.RunPodSandbox(config=…, runtime_handler=…)`: the keywords are the request's fields, the result is the
    response. A failure is a grpc.RpcError."""

    def __init__(self, socket: str) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}", options=[("grpc.max_reconnect_backoff_ms", 500)])
        services = api.DESCRIPTOR.services_by_name.values()
        self._methods = {method.name: method for service in services for method in service.methods}

    def __getattr__(self, name: str) -> Any:
        method = self._methods[name]
        stub = self._channel.unary_unary(
            f"/{method.containing_service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(api, method.output_type.name).FromString,
        )
        request = getattr(api, method.input_type.name)

        def call(*, timeout_s: float = TIMEOUT_S, **given: Any) -> Any:
            return stub(request(**given), timeout=timeout_s, wait_for_ready=True)

        return call

    def later(self, name: str, **given: Any) -> grpc.Future:
        """The call, begun and not waited for."""
        method = self._methods[name]
        stub = self._channel.unary_unary(
            f"/{method.containing_service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(api, method.output_type.name).FromString,
        )
        return stub.future(getattr(api, method.input_type.name)(**given), timeout=TIMEOUT_S)

    def close(self) -> None:
        self._channel.close()

    # -- shorter words ------------------------------------------------------------------------------------------

    def run_pod(self, config: api.PodSandboxConfig, handler: str) -> str:
        """RunPodSandbox; the pod's id."""
        return self.RunPodSandbox(config=config, runtime_handler=handler).pod_sandbox_id

    def create(self, pod: str, config: api.ContainerConfig, pod_config: api.PodSandboxConfig) -> str:
        """CreateContainer; the container's id."""
        asked = {"pod_sandbox_id": pod, "config": config, "sandbox_config": pod_config}
        return self.CreateContainer(**asked).container_id

    def run(self, pod: str, config: api.ContainerConfig, pod_config: api.PodSandboxConfig) -> str:
        """Create and start."""
        container = self.create(pod, config, pod_config)
        self.StartContainer(container_id=container)
        return container

    def exec(self, container: str, *cmd: str, timeout: int = 20) -> str:
        """ExecSync that must succeed; its standard output."""
        done = self.ExecSync(container_id=container, cmd=cmd, timeout=timeout)
        assert done.exit_code == 0, f"{cmd}: {done.exit_code}\n{done.stdout!r}{done.stderr!r}"
        return done.stdout.decode()

    def state(self, container: str) -> str:
        """CREATED, RUNNING, EXITED or UNKNOWN."""
        status = self.ContainerStatus(container_id=container).status
        return api.ContainerState.Name(status.state).removeprefix("CONTAINER_")

    def pod_state(self, pod: str) -> str:
        """READY or NOTREADY."""
        status = self.PodSandboxStatus(pod_sandbox_id=pod).status
        return api.PodSandboxState.Name(status.state).removeprefix("SANDBOX_")

    def wait_exited(self, container: str) -> api.ContainerStatus:
        """Its status, once it has ended."""
        wait_until(lambda: self.state(container) == "EXITED", what=f"the end of {container[:12]}", timeout_s=30.0)
        return self.ContainerStatus(container_id=container).status

    def remove_pod(self, pod: str) -> None:
        """Stop and remove."""
        self.StopPodSandbox(pod_sandbox_id=pod)
        self.RemovePodSandbox(pod_sandbox_id=pod)

    def remove_all(self) -> None:
        """Every pod that there is."""
        for pod in self.ListPodSandbox().items:
            self.remove_pod(pod.id)


def pod_config(name: str, logs: Path, *, cgroup_parent: str = "", host_network: bool = False, **fields: Any) -> Any:
    """A PodSandboxConfig. fields: further ones of it; those of `linux` as a mapping, merged."""
    linux: dict[str, Any] = dict(fields.pop("linux", {}))
    options = {"network": api.NODE if host_network else api.POD, "pid": api.CONTAINER, "ipc": api.POD}
    security = {"namespace_options": options, **linux.pop("security_context", {})}
    return api.PodSandboxConfig(
        metadata={"name": name, "uid": f"uid-{name}", "namespace": "default"},
        log_directory=str(logs),
        linux={"cgroup_parent": cgroup_parent, "security_context": security, **linux},
        **{"hostname": name, **fields},
    )


def container_config(name: str, *command: str, image: str, env: Mapping[str, str] | None = None, **fields: Any) -> Any:
    """A ContainerConfig; its log is NAME.log in the pod's directory. It has a process table of its own, unless `linux`
    says something."""
    fields.setdefault("linux", {})
    fields["linux"].setdefault("security_context", {}).setdefault("namespace_options", {"pid": api.CONTAINER})
    return api.ContainerConfig(
        metadata={"name": name},
        image={"image": image},
        command=command,
        log_path=f"{name}.log",
        envs=[{"key": key, "value": value.encode()} for key, value in (env or {}).items()],
        **fields,
    )

"""drupe: a container runtime that runs every pod in the sandbox its workload needs.

    import drupe

    with drupe.Sandbox("busybox", memory="256M", network="none") as sb:
        print(sb.run(["echo", "hello"], check=True).text)

`Sandbox` is the short way, `Runtime` the complete one; `AsyncSandbox` and `AsyncRuntime` are their asyncio twins.
Everything here is imported when it is first used, so that `import drupe` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from drupe.api._async.containers import AsyncContainer
    from drupe.api._async.pods import AsyncPod
    from drupe.api._async.process import AsyncProcess
    from drupe.api._async.runtime import AsyncRuntime
    from drupe.api._async.sandbox import AsyncSandbox
    from drupe.api._sync.containers import Container
    from drupe.api._sync.pods import Pod
    from drupe.api._sync.process import Process
    from drupe.api._sync.runtime import Runtime
    from drupe.api._sync.sandbox import Sandbox
    from drupe.api.result import Result, Timing
    from drupe.api.values import Mount, Network, Port, Secret
    from drupe.errors import (
        AlreadyExists,
        CommandFailed,
        CommandTimeout,
        DataLoss,
        DeadlineExceeded,
        DrupeError,
        HelperFailed,
        InternalError,
        InvalidArgument,
        InvalidState,
        InvalidTransition,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        Unavailable,
        Unsupported,
    )
    from drupe.spec import ContainerSpec, ExecSpec, NetworkSpec, PodSpec, Resources, SecuritySpec

_HOMES = {
    "drupe.api._async.containers": ("AsyncContainer",),
    "drupe.api._async.pods": ("AsyncPod",),
    "drupe.api._async.process": ("AsyncProcess",),
    "drupe.api._async.runtime": ("AsyncRuntime",),
    "drupe.api._async.sandbox": ("AsyncSandbox",),
    "drupe.api._sync.containers": ("Container",),
    "drupe.api._sync.pods": ("Pod",),
    "drupe.api._sync.process": ("Process",),
    "drupe.api._sync.runtime": ("Runtime",),
    "drupe.api._sync.sandbox": ("Sandbox",),
    "drupe.api.result": ("Result", "Timing"),
    "drupe.api.values": ("Mount", "Network", "Port", "Secret"),
    "drupe.errors": (
        "AlreadyExists", "CommandFailed", "CommandTimeout", "DataLoss", "DeadlineExceeded", "DrupeError",
        "HelperFailed", "InternalError", "InvalidArgument", "InvalidState", "InvalidTransition", "NotFound",
        "PermissionDenied", "ResourceExhausted", "Unavailable", "Unsupported",
    ),
    "drupe.spec": ("ContainerSpec", "ExecSpec", "NetworkSpec", "PodSpec", "Resources", "SecuritySpec"),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Sandbox", "Runtime", "Pod", "Container", "Process",
    "AsyncSandbox", "AsyncRuntime", "AsyncPod", "AsyncContainer", "AsyncProcess",
    "Result", "Timing", "Mount", "Network", "Port", "Secret",
    "ContainerSpec", "ExecSpec", "NetworkSpec", "PodSpec", "Resources", "SecuritySpec",
    "AlreadyExists", "CommandFailed", "CommandTimeout", "DataLoss", "DeadlineExceeded", "DrupeError",
    "HelperFailed", "InternalError", "InvalidArgument", "InvalidState", "InvalidTransition", "NotFound",
    "PermissionDenied", "ResourceExhausted", "Unavailable", "Unsupported",
    "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used (PEP 562)."""
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module 'drupe' has no attribute {name!r}") from None
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

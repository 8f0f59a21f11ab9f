"""From what Python callers write to the spec's words. Pure functions, shared by both twins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from secrets import token_hex

from msgspec import structs

from drupe.errors import InvalidArgument
from drupe.spec.container import IDLE, ContainerSpec, ExecSpec, Mount, Secret, SecuritySpec
from drupe.spec.network import NetworkSpec, PortMapping
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources
from drupe.spec.units import parse_cpus, parse_size

LABEL = "drupe.sandbox"  # marks pods that were made as sandboxes


def command(argv: Sequence[str]) -> tuple[str, ...]:
    """argv as a tuple of words. Raises InvalidArgument for a string or an empty one."""
    if isinstance(argv, str | bytes) or not argv:
        raise InvalidArgument(f"bad command {argv!r}", hint='give a list such as ["ls", "-l"], or use shell("ls -l")')
    return tuple(str(word) for word in argv)


def exec_spec(
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    env: dict[str, str] | Iterable[str] | None = None,
    user: str | None = None,
    timeout: float | None = None,
    tty: bool = False,
    rows: int = 0,
    cols: int = 0,
    privileged: bool = False,
) -> ExecSpec:
    """The ExecSpec of what Python callers write. Raises InvalidArgument for a string or an empty argv."""
    return ExecSpec(
        argv=command(argv),
        env=env_words(env),
        cwd=cwd,
        user=user,
        tty=tty,
        rows=rows,
        cols=cols,
        privileged=privileged,
        timeout_s=timeout,
    )


def env_words(env: dict[str, str] | Iterable[str] | None) -> tuple[str, ...]:
    """ "K=V" words of a dict, or of words that are so already. Raises InvalidArgument for a name that holds a "="."""
    if env is None:
        return ()
    if not isinstance(env, dict):
        return tuple(env)
    for key in env:
        if "=" in key:
            raise InvalidArgument(f"environment variable {key!r} has a = in its name")
    return tuple(f"{key}={value}" for key, value in env.items())


def limits(
    resources: Resources | None = None,
    *,
    memory: str | int | None = None,
    cpus: str | float | None = None,
    pids: int | None = None,
) -> Resources:
    """`resources` with the named limits set. Raises InvalidArgument."""
    changes = {
        "memory_bytes": None if memory is None else parse_size(memory),
        "cpus": None if cpus is None else parse_cpus(cpus),
        "pids": pids,
    }
    return structs.replace(resources or Resources(), **{k: v for k, v in changes.items() if v is not None})


def sandbox_spec(
    *,
    image: str,
    argv: Sequence[str],
    isolation: str,
    name: str | None,
    rootfs: str | Path,
    memory: str | int | None,
    cpus: str | float | None,
    pids: int | None,
    network: NetworkSpec | str | None,
    ports: Iterable[PortMapping | str | int],
    mounts: Iterable[Mount],
    secrets: Iterable[Secret],
    env: dict[str, str] | Iterable[str] | None,
    cwd: str | None,
    user: str | None,
    hostname: str | None,
    read_only: bool,
    security: SecuritySpec | None,
    labels: dict[str, str] | None,
    lifetime: float | None,
) -> PodSpec:
    """The pod of a sandbox. Its id is chosen here, so that a start that was cut short can be cleaned up by id."""
    container = ContainerSpec(
        name="main",
        image=image,
        rootfs=str(rootfs),
        argv=command(argv) if argv else (),
        annotations={} if argv else {IDLE: "true"},
        env=env_words(env),
        cwd=cwd,
        user=user,
        read_only=read_only,
        init=bool(argv),
        mounts=tuple(mounts),
        secrets=tuple(secrets),
        resources=limits(memory=memory, cpus=cpus, pids=pids),
        security=security or SecuritySpec(),
    )
    return PodSpec(
        id=token_hex(16),
        name=name,
        sandbox=isolation,
        hostname=hostname,
        labels={LABEL: "true", **(labels or {})},
        network=_network(network),
        ports=tuple(_port(port) for port in ports),
        containers=(container,),
        timeout_s=lifetime,
    )


def _network(network: NetworkSpec | str | None) -> NetworkSpec:
    from drupe.api.values import Network

    if network is not None and not isinstance(network, NetworkSpec | str):
        raise InvalidArgument(f"bad network {network!r}", hint='give "none", a network\'s name, or a drupe.Network')
    return Network.parse(network) if isinstance(network, str) else network or NetworkSpec()


def _port(port: PortMapping | str | int) -> PortMapping:
    from drupe.api.values import Port

    return port if isinstance(port, PortMapping) else Port.parse(str(port))

"""The `process` part of an OCI config: argv, environment, capabilities, limits (runtime-spec, config.md, Process)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from drupe.errors import InvalidArgument
from drupe.oci.capabilities import ordered
from drupe.oci.host import RLIMITS, HostLimits
from drupe.oci.users import ResolvedUser
from drupe.spec import ContainerSpec, Rlimit

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT_TARGET = "/dev/init"  # on the container's own /dev, so that the image stays untouched


class ImageConfig(Protocol):
    """What the core needs of an image's configuration (image-spec, config.md); empty values mean unset."""

    @property
    def entrypoint(self) -> Sequence[str]: ...
    @property
    def cmd(self) -> Sequence[str]: ...
    @property
    def env(self) -> Sequence[str]: ...
    @property
    def cwd(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def volumes(self) -> Sequence[str]: ...
    @property
    def stop_signal(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


def container_argv(container: ContainerSpec, image: ImageConfig) -> list[str]:
    """Docker's rule: entrypoint + command; giving an entrypoint drops the image's command.

    Raises InvalidArgument when nothing is left to run, or an argument holds a NUL.
    """
    entrypoint = image.entrypoint if container.entrypoint is None else container.entrypoint
    command: Sequence[str] = container.argv
    if not command and not container.entrypoint:
        command = image.cmd
    argv = [*entrypoint, *command]
    if not argv or not argv[0]:
        raise InvalidArgument(
            "no command to run: none was given and the image has none", hint="give the program and its arguments"
        )
    refuse_nul(argv, "argument")
    return argv


def container_env(container: ContainerSpec, image: ImageConfig, *, hostname: str, user: ResolvedUser) -> list[str]:
    """The environment in Docker's order: PATH, HOSTNAME, TERM, the user's, the image's, HOME.

    An entry "K" without "=" removes K. Raises InvalidArgument for an entry without a name or with a NUL.
    """
    given = _parse_env(container.env)
    env: dict[str, str | None] = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if container.tty:
        env["TERM"] = "xterm"
    env |= given
    env |= {name: value for name, value in _parse_env(image.env).items() if name not in given}
    env.setdefault("HOME", user.home)
    return [f"{name}={value}" for name, value in env.items() if value is not None]


def merge_env(base: Iterable[str], added: Iterable[str]) -> list[str]:
    """`base` with `added` on top, in place where a name exists; "K" removes."""
    env = _parse_env(base) | _parse_env(added)
    return [f"{name}={value}" for name, value in env.items() if value is not None]


def container_cwd(container: ContainerSpec, image: ImageConfig) -> str:
    """Working directory: the container's, the image's, or "/". Raises InvalidArgument for a relative one."""
    return check_cwd(container.cwd if container.cwd is not None else image.cwd or "/")


def check_cwd(cwd: str) -> str:
    """`cwd` itself. Raises InvalidArgument unless it is an absolute path."""
    if not cwd.startswith("/") or "\0" in cwd:
        raise InvalidArgument(f"working directory {cwd!r} is not an absolute path")
    return cwd


def oci_user(user: ResolvedUser) -> dict[str, Any]:
    return {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)}


def oci_capabilities(granted: Sequence[str], *, uid: int, explicit: Iterable[str] = ()) -> dict[str, list[str]]:
    """The capability sets of a process.

    Root has `granted` at once. For another user it is only the bound, as after execve(2) from root, but for what was
    asked for by name (`explicit`): that is made ambient, because the user would otherwise never get it.
    Nothing else is inheritable.
    """
    bounding = list(granted)
    if uid == 0:
        return {"bounding": bounding, "effective": list(bounding), "permitted": list(bounding)}
    named = list(ordered(set(explicit) & set(granted)))
    sets = {"bounding": bounding}
    for kind in ("effective", "permitted", "inheritable", "ambient"):
        sets[kind] = list(named)
    return sets


def oci_rlimits(rlimits: Iterable[Rlimit], host: HostLimits) -> tuple[list[dict[str, Any]], list[str]]:
    """OCI rlimits, and a note for each that had to be lowered because this host may not raise hard limits.

    Raises InvalidArgument for an unknown or doubled name, a soft limit above the hard one, a negative number.
    """
    found: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for rlimit in rlimits:
        name = rlimit.name.lower().removeprefix("rlimit_")
        _check_rlimit(name, rlimit, found)
        soft, hard = rlimit.soft, rlimit.hard
        most = host.hard_rlimits.get(name, -1)
        if not host.may_raise and _above(hard, most):
            notes.append(
                f"rlimit {name}: hard limit {_limit(hard)} lowered to {_limit(most)}, the host's own "
                "(CAP_SYS_RESOURCE is missing)"
            )
            hard = most
            soft = most if _above(soft, most) else soft
        found[name] = {"type": f"RLIMIT_{name.upper()}", "soft": _unsigned(soft), "hard": _unsigned(hard)}
    return list(found.values()), notes


def oci_oom_score_adj(value: int | None, host: HostLimits) -> tuple[int | None, list[str]]:
    """The OOM score adjustment, raised to the lowest that the host allows, with a note if it was (proc(5)).

    Raises InvalidArgument unless it lies in -1000..1000.
    """
    if value is None:
        return None, []
    if not -1000 <= value <= 1000:
        raise InvalidArgument(f"oom_score_adj {value} is not in -1000..1000")
    least = host.min_oom_score_adj
    if host.may_raise or value >= least:
        return value, []
    return least, [f"oom_score_adj {value} raised to {least}, the host's own (CAP_SYS_RESOURCE is missing)"]


def _check_rlimit(name: str, rlimit: Rlimit, seen: Mapping[str, Any]) -> None:
    if name not in RLIMITS:
        raise InvalidArgument(f"no rlimit {rlimit.name!r}", hint=f"one of {', '.join(sorted(RLIMITS))}")
    if name in seen:
        raise InvalidArgument(f"rlimit {name} is given twice")
    if rlimit.soft < -1 or rlimit.hard < -1:
        raise InvalidArgument(f"rlimit {name} is negative", hint="-1 means unlimited")
    if _above(rlimit.soft, rlimit.hard):
        raise InvalidArgument(f"rlimit {name}: soft limit {rlimit.soft} is above hard limit {rlimit.hard}")


def _above(limit: int, other: int) -> bool:
    return other != -1 and (limit == -1 or limit > other)


def _unsigned(limit: int) -> int:
    return 2**64 - 1 if limit == -1 else limit  # RLIM_INFINITY, as the OCI's uint64


def _limit(limit: int) -> str:
    return "unlimited" if limit == -1 else str(limit)


def _parse_env(entries: Iterable[str]) -> dict[str, str | None]:
    env: dict[str, str | None] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name:
            raise InvalidArgument(f"environment entry {entry!r} has no name", hint="write it as NAME=value")
        env[name] = value if equals else None
    refuse_nul((f"{name}{value}" for name, value in env.items()), "environment entry")
    return env


def refuse_nul(texts: Iterable[str], what: str) -> None:
    """InvalidArgument naming the first of `texts` that holds a NUL: the system would cut it there."""
    for text in texts:
        if "\0" in text:
            raise InvalidArgument(f"{what} {text!r} holds a NUL")

"""A further process in a running container: the file for `crun exec --process` (runtime-spec, config.md, Process)."""

from __future__ import annotations

from typing import Any

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci import process
from drupe.oci.capabilities import ordered, parse_capability
from drupe.oci.host import HostLimits, host_limits
from drupe.oci.users import ResolvedUser
from drupe.spec import ExecSpec


def build_process(
    base_process: dict[str, Any], exec: ExecSpec, user: ResolvedUser, *, host: HostLimits | None = None
) -> dict[str, Any]:
    """The OCI process of an exec: what `exec` says, and otherwise the container's own (`base_process`).

    Its limits, OOM score and capability bound are the container's, unless privileged. user: resolved from `exec.user`,
    or the container's own. Raises InvalidArgument (no argv, relative cwd, bad names), Unsupported (capability).
    """
    argv = list(exec.argv)
    if not argv or not argv[0]:
        raise InvalidArgument("no command to run", hint="give the program and its arguments")
    process.refuse_nul(argv, "argument")
    env = process.merge_env(base_process.get("env", ()), _added_env(exec, user))
    made = dict(base_process)
    made.pop("consoleSize", None)
    made |= {
        "terminal": exec.tty,
        "user": process.oci_user(user),
        "args": argv,
        "env": env,
        "cwd": process.check_cwd(exec.cwd) if exec.cwd is not None else base_process.get("cwd", "/"),
        "capabilities": _capabilities(base_process, exec, user, host or host_limits()),
        "noNewPrivileges": exec.no_new_privileges and not exec.privileged,
    }
    if exec.tty and exec.rows and exec.cols:
        made["consoleSize"] = {"height": exec.rows, "width": exec.cols}
    return made


def _added_env(exec: ExecSpec, user: ResolvedUser) -> list[str]:
    added = [f"HOME={user.home}"] if exec.user is not None else []
    return [*added, *(["TERM=xterm"] if exec.tty else []), *exec.env]


def _capabilities(base: dict[str, Any], exec: ExecSpec, user: ResolvedUser, host: HostLimits) -> dict[str, list[str]]:
    bound = set(base.get("capabilities", {}).get("bounding", ()))
    named = {parse_capability(name) for name in exec.cap_add}
    if missing := sorted(named - host.capabilities):
        raise Unsupported(f"this host cannot give capability {', '.join(missing)}")
    granted = ordered(host.capabilities if exec.privileged else bound | named)
    explicit = host.capabilities if exec.privileged else named
    return process.oci_capabilities(granted, uid=user.uid, explicit=explicit)

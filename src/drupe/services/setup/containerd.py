"""containerd: a runtime handler for each kind, and from 2.0 on the proxy plug-in of the Sandbox Controller.

config.toml stays what it is; our part is a block at its end. TOML allows that as long as nothing is said twice, and
that is checked before anything is written.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from drupe.errors import InvalidArgument, Unsupported
from drupe.services.nodeconfig import DEFAULT_PATH
from drupe.services.probes_host import sys_resource
from drupe.services.probing import Finding, Inconclusive, Problem, program, run
from drupe.services.setup.checks import answers, each_kind, ours, path_of, socket_answers
from drupe.services.setup.plan import (
    File,
    Setup,
    check,
    dotted,
    parse,
    read,
    table,
    version_of,
    with_block,
    without_block,
)

CONFIG = Path("/etc/containerd/config.toml")
SHIM = "containerd-shim-drupe-v2"
_SANDBOXERS_SINCE = (2,)
_SOCKET = "/run/containerd/containerd.sock"
_OLD, _NEW = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"
_RUNTIME = "io.containerd.drupe{kind}.v2"

_PROXY = """
[proxy_plugins.drupe]
  type = "sandbox"
  address = "{socket}"
"""
_SANDBOXED = """
[plugins.'{plugin}'.containerd.runtimes.{name}]
  runtime_type = "{runtime}"
  sandboxer = "drupe"
"""
# containerd asks runtimes of runc's type alone what they can do, and Kubernetes gives pods with a user namespace to
# those that say so: "drupe-oci features" does. Neither makes anything here: the sandboxer has the handler's name.
_MAPPING = """
[plugins.'{plugin}'.containerd.runtimes.drupe-runc]
  runtime_type = "io.containerd.runc.v2"
  sandboxer = "drupe"
  options = {{ BinaryName = "{program}" }}
"""
_BY_SHIM = """
[plugins."{plugin}".containerd.runtimes.{name}]
  runtime_type = "{runtime}"
  pod_annotations = ["drupe.*"]
"""
_SERVED = """
[containerd]
sandboxer = true
"""


def plan(*, config: Path = CONFIG, run_dir: Path) -> Setup:
    """What is to be written for the containerd that is installed here, and what it needs. Unsupported (none, or one
    that is too old), InvalidArgument: a configuration that cannot be added to."""
    version = _installed()
    files = [_config(config, version, run_dir)]
    sandboxed = version >= _SANDBOXERS_SINCE
    if sandboxed:
        files.append(_node_config(Path(os.environ.get("DRUPE_CONFIG") or DEFAULT_PATH)))
    settings = tomllib.loads(files[0].content)
    socket = str(table(settings, "grpc").get("address") or _SOCKET)
    checks = [
        check("shim", lambda: ours(SHIM) if sandboxed else shims()),
        check("oom_score_adj", lambda: _oom_score_adj(settings)),
        check("CRI", lambda: _cri_is_on(settings)),
        check("cgroup driver", lambda: _cgroup_driver(settings)),
        check("configuration", lambda: _loads(files[0])),
        check("containerd", lambda: socket_answers(socket, start="systemctl start containerd")),
        check("drupe", lambda: answers(run_dir)),
    ]
    if sandboxed:
        checks.append(check("sandboxer", lambda: socket_answers(f"{run_dir}/sandboxer.sock", start=_RELOAD)))
    return Setup(
        tool="containerd", version=dotted(version), files=files, checks=checks, restart="systemctl restart containerd"
    )


_RELOAD = "restart drupe's daemon, which reads its configuration then"


def _installed() -> tuple[int, ...]:
    try:
        version = version_of(run([program("containerd", package="containerd"), "--version"]).stdout, tool="containerd")
    except Problem as problem:
        raise Unsupported(problem.cause, hint=problem.mend) from None
    if version < (1, 6):
        raise Unsupported(f"containerd {dotted(version)} is too old", hint="1.6 or later")
    return version


# -- config.toml ------------------------------------------------------------------------------------------------------


def _config(path: Path, version: tuple[int, ...], run_dir: Path) -> File:
    old = read(path)
    others = without_block(old or "")
    number = _number(others, path, version)
    text = others if others.strip() else f"version = {number}\n"
    block = _sandboxed(number, run_dir) if version >= _SANDBOXERS_SINCE else _by_shim()
    content = with_block(text, block)
    try:
        tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(
            f"{path} says already, by itself, what would be added: {error}",
            hint="remove its tables proxy_plugins.drupe and runtimes.drupe…, or write inline tables out",
        ) from None
    return File(path=str(path), content=content, old=old)


def _number(others: str, path: Path, version: tuple[int, ...]) -> int:
    """The version of the file: its own, else the newest that this containerd reads."""
    settings = parse(path, others, "TOML")
    if not settings:
        return 3 if version >= (2,) else 2
    number = settings.get("version", 1)
    if number == 1:
        raise Unsupported(f"{path} is of version 1", hint="containerd config migrate writes it anew")
    if not isinstance(number, int) or number < 1 or number > (4 if version >= (2, 3) else 3 if version >= (2,) else 2):
        raise InvalidArgument(f"{path}: containerd {dotted(version)} does not read version {number!r}")
    return number


def _sandboxed(number: int, run_dir: Path) -> str:
    """All of them by the sandboxer, which is told the handler's name."""
    names = ("drupe", *(name for kind, name in each_kind("drupe-{}").items() if kind != "runc"))
    plugin = _NEW if number >= 3 else _OLD
    handlers = [_SANDBOXED.format(plugin=plugin, name=name, runtime=_RUNTIME.format(kind="")) for name in names]
    handlers.append(_MAPPING.format(plugin=plugin, program=path_of("drupe-oci")))
    return _PROXY.format(socket=run_dir / "sandboxer.sock") + "".join(handlers)


def _by_shim() -> str:
    """containerd 1.x knows no sandboxers of others: the shim's name says the kind."""
    names = {"drupe": "", **{f"drupe-{kind}": suffix for kind, suffix in each_kind("-{}").items()}}
    return "".join(
        _BY_SHIM.format(plugin=_OLD, name=name, runtime=_RUNTIME.format(kind=kind)) for name, kind in names.items()
    )


def shims() -> str:
    """Whether the shim is there, under each name that decides for a kind."""
    return ours(SHIM, list(each_kind("containerd-shim-drupe-{}-v2").values()))


def _node_config(path: Path) -> File:
    """The switch in our own configuration."""
    old = read(path)
    others = without_block(old or "")
    settings = parse(path, others, "TOML")
    if table(settings, "containerd").get("sandboxer"):
        return File(path=str(path), content=old or "", old=old)
    if "containerd" in settings:
        raise InvalidArgument(f"{path} has a table [containerd] without sandboxer", hint="add sandboxer = true to it")
    return File(path=str(path), content=with_block(others, _SERVED), old=old)


# -- checks -----------------------------------------------------------------------------------------------------------


def _cri(settings: dict[str, Any]) -> dict[str, Any]:
    return table(settings, "plugins", _NEW) or table(settings, "plugins", _OLD)


def _cri_is_on(settings: dict[str, Any]) -> str:
    """Packages of Docker's bring a configuration without it."""
    disabled = settings.get("disabled_plugins")
    for name in disabled if isinstance(disabled, list) else []:
        if name in ("cri", _OLD, _NEW):
            raise Inconclusive(f"the CRI is off: disabled_plugins has {name!r}", "remove it there, for Kubernetes")
    return "on"


def _oom_score_adj(settings: dict[str, Any]) -> str:
    if _cri(settings).get("restrict_oom_score_adj"):
        return "restricted"
    try:
        return sys_resource() or "may be lowered"
    except Finding:
        plugin = _NEW if settings.get("version", 2) >= 3 else _OLD
        raise Problem(
            "CAP_SYS_RESOURCE is missing: pods that ask for a lower oom_score_adj cannot start",
            f"restrict_oom_score_adj = true in [plugins.'{plugin}']",
        ) from None


def _cgroup_driver(settings: dict[str, Any]) -> str:
    if table(_cri(settings), "containerd", "runtimes", "runc", "options").get("SystemdCgroup"):
        return "systemd: pods are made as plain cgroups below the slices that the kubelet gives"
    return "cgroupfs"


def _loads(file: File) -> str:
    """What containerd itself says of the file that is in place."""
    if file.changed:
        raise Inconclusive(f"{file.path} is not written yet", "drupe setup containerd --write")
    done = run(["containerd", "--config", file.path, "config", "dump"], deadline_s=10.0)
    if done.code != 0:
        raise Problem(done.last_line, f"look at {file.path}")
    return f"{file.path} is read"

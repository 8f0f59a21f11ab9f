"""Docker: daemon.json's `runtimes`. Before Docker 23 a runtime is an OCI program; since then it may be a shim of
containerd's, which spares a process for each container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drupe.errors import InvalidArgument, NotFound
from drupe.services.probing import Inconclusive, Problem, program, run
from drupe.services.setup.checks import answers, each_kind, ours, path_of, socket_answers
from drupe.services.setup.containerd import shims
from drupe.services.setup.plan import File, Setup, check, dotted, parse, read, version_of

CONFIG = Path("/etc/docker/daemon.json")
_SOCKET = "/var/run/docker.sock"
_SHIMS_SINCE = (23,)
OCI = "drupe-oci"


def plan(*, config: Path = CONFIG, run_dir: Path) -> Setup:
    """What is to be written for the Docker that is here. NotFound (dockerd), InvalidArgument (daemon.json)."""
    try:
        version = version_of(run([program("dockerd", package="docker.io"), "--version"]).stdout, tool="dockerd")
    except Problem as problem:
        raise NotFound(problem.cause, hint=problem.mend) from None
    by_shim = version >= _SHIMS_SINCE
    file = _config(config, runtimes(by_shim=by_shim))
    checks = [
        check("programs", lambda: _programs(by_shim=by_shim)),
        check("configuration", lambda: _valid(file, version)),
        check("docker", lambda: socket_answers(_socket(file), start="systemctl start docker")),
        check("drupe", lambda: answers(run_dir)),
    ]
    return Setup(tool="docker", version=dotted(version), files=[file], checks=checks, restart="systemctl reload docker")


def runtimes(*, by_shim: bool) -> dict[str, dict[str, Any]]:
    """Name to description, as daemon.json has them: `drupe`, which leaves the kind to annotation and node, and one for
    each kind."""
    suffixes = ["", *each_kind("-{}").values()]
    if by_shim:
        return {f"drupe{suffix}": {"runtimeType": f"io.containerd.drupe{suffix}.v2"} for suffix in suffixes}
    return {f"drupe{suffix}": {"path": path_of(f"{OCI}{suffix}")} for suffix in suffixes}


def _programs(*, by_shim: bool) -> str:
    """Each kind's is the same program under another name."""
    return shims() if by_shim else oci_programs()


def oci_programs() -> str:
    """Whether `drupe-oci` is there, under each name that decides for a kind."""
    return ours(OCI, list(each_kind(OCI + "-{}").values()))


def _config(path: Path, wanted: dict[str, dict[str, Any]]) -> File:
    """Merged: what others set stays, in its order and indentation, and so do options of a runtime of ours."""
    old = read(path)
    text = old or ""
    settings = parse(path, text, "JSON") if text.strip() else {}
    if not isinstance(settings, dict) or not isinstance(settings.get("runtimes", {}), dict):
        raise InvalidArgument(f"{path} is not an object with an object `runtimes`")
    runtimes = settings.get("runtimes", {})
    ours = {name: _with_options(runtimes.get(name), entry) for name, entry in wanted.items()}
    merged = {**settings, "runtimes": {**runtimes, **ours}}
    if merged != settings:
        text = json.dumps(merged, indent=_indent(text), ensure_ascii=False) + "\n"
    return File(path=str(path), content=text, old=old)


def _with_options(there: Any, entry: dict[str, Any]) -> dict[str, Any]:
    """What is there, where it names the same program."""
    same = isinstance(there, dict) and all(there.get(name) == value for name, value in entry.items())
    return there if same else entry


def _indent(text: str) -> int | str:
    """What the file's first indented line begins with."""
    line = next((line for line in text.splitlines() if line[:1] in (" ", "\t")), "    ")
    space = line[: len(line) - len(line.lstrip())]
    return space if "\t" in space else len(space)


def _socket(file: File) -> str:
    hosts = json.loads(file.content).get("hosts")
    named = [str(host) for host in hosts] if isinstance(hosts, list) else []
    return next((host.removeprefix("unix://") for host in named if host.startswith("unix://")), _SOCKET)


def _valid(file: File, version: tuple[int, ...]) -> str:
    """What dockerd itself says of the file that is in place."""
    if file.changed:
        raise Inconclusive(f"{file.path} is not written yet", "drupe setup docker --write")
    if version < _SHIMS_SINCE:  # it cannot be asked
        return f"{file.path} is JSON"
    done = run(["dockerd", "--validate", "--config-file", file.path], deadline_s=10.0)
    if done.code != 0:
        raise Problem(done.last_line, f"look at {file.path}")
    return f"{file.path} is read"

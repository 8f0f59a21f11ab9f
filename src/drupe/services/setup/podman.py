"""Podman: a file of our own below containers.conf.d (containers.conf(5)), so that nobody's has to be changed."""

from __future__ import annotations

import resource
import tomllib
from pathlib import Path

from drupe.errors import InvalidArgument, NotFound
from drupe.services.probes_host import sys_resource
from drupe.services.probing import Finding, Inconclusive, Problem, program, run
from drupe.services.setup.checks import answers, each_kind, path_of
from drupe.services.setup.docker import OCI, oci_programs
from drupe.services.setup.plan import File, Setup, check, dotted, parse, read, version_of, with_block, without_block

CONFIG = Path("/etc/containers/containers.conf.d/drupe.conf")
_DIRECTORY_SINCE = (4,)
_WHOLE = Path("/etc/containers/containers.conf")
_PODMANS_NOFILE = 1_048_576  # the hard limit that it gives containers where nobody says otherwise


def plan(*, config: Path | None = None, run_dir: Path) -> Setup:
    """What is to be written for the Podman that is installed here. NotFound (podman)."""
    try:
        version = version_of(run([program("podman", package="podman"), "--version"]).stdout, tool="podman")
    except Problem as problem:
        raise NotFound(problem.cause, hint=problem.mend) from None
    path = config or (CONFIG if version >= _DIRECTORY_SINCE else _WHOLE)
    old = read(path)
    file = File(path=str(path), content=_config(path, without_block(old or "")), old=old)
    checks = [
        check("programs", oci_programs),
        check("limits", _limits),
        check("configuration", lambda: _known(file)),
        check("drupe", lambda: answers(run_dir)),
    ]
    return Setup(tool="podman", version=dotted(version), files=[file], checks=checks, restart="")


def _config(path: Path, others: str) -> str:
    """What others wrote, and our part; TOML has a table once. InvalidArgument."""
    parse(path, others, "TOML")
    content = with_block(others, _block())
    try:
        tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(
            f"{path} says already, by itself, what would be added: {error}",
            hint=f"move its [engine.runtimes] below {CONFIG.parent}, or add drupe there by hand",
        ) from None
    return content


def _block() -> str:
    """The table of runtimes: a name, and where its program may be."""
    suffixes = ["", *each_kind("-{}").values()]
    lines = (f'drupe{suffix} = ["{path_of(OCI + suffix)}"]\n' for suffix in suffixes)
    return "[engine.runtimes]\n" + "".join(lines)


def _limits() -> str:
    """Podman raises limits of its containers, which not every host may do."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        return sys_resource() or "may be raised"
    except Finding:
        if hard >= _PODMANS_NOFILE:
            return f"nofile {hard}"
        raise Inconclusive(
            "CAP_SYS_RESOURCE is missing: the limits that podman gives its containers cannot be raised",
            f'default_ulimits = ["nofile={hard}:{hard}", "nproc=…"] in [containers] of containers.conf, or --ulimit',
        ) from None


def _known(file: File) -> str:
    """Whether podman, as it is configured now, takes our name for a runtime."""
    if file.changed:
        raise Inconclusive(f"{file.path} is not written yet", "drupe setup podman --write")
    if Path(file.path) not in (CONFIG, _WHOLE):
        raise Inconclusive(f"{file.path} is not where podman looks by itself", f"CONTAINERS_CONF={file.path}")
    done = run(["podman", "--runtime", "drupe", "info", "--format", "{{.Host.OCIRuntime.Path}}"], deadline_s=20.0)
    if done.code != 0:
        raise Problem(done.last_line, f"look at {file.path}")
    return f"drupe is {done.stdout.strip()}"

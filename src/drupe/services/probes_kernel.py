"""Probes that make something: a container, a mount, a namespace, a bridge, a table. All of it in private namespaces."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drupe.services.probing import Inconclusive, Problem, expect, program, run

_PRIVATE = ("unshare", "--mount", "sh", "-euc")
# crun refuses a tree that is v1 with an empty v2 beside it; the keeper hides that one in the same way: crun makes a
# directory there all the same, which must not stay
_HIDE_EMPTY_UNIFIED = (
    "! umount /sys/fs/cgroup/unified 2>/dev/null || mount --bind /sys/fs/cgroup/systemd /sys/fs/cgroup/unified "
    "2>/dev/null || mount -t tmpfs none /sys/fs/cgroup/unified; "
)
_MEND_MODULE = "modprobe {0}, or use a kernel with {0}"


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for one probe."""
    with tempfile.TemporaryDirectory(prefix="drupe-doctor-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def oci_runtime(name: str) -> str:
    """Run a container with crun or runc. Answers the version."""
    path = program(name, package=name)
    with scratch() as directory:
        done = run_container(path, directory, ["/usr/bin/true"])
        if done.code != 0:
            raise Problem(done.last_line, f"apt-get install --reinstall {name}")
    return run([path, "--version"]).stdout.splitlines()[0]


def run_container(path: str, directory: Path, argv: list[str], **linux: Any) -> Any:
    """`argv` from the host's /usr in a container of its own; whatever it leaves is removed."""
    identifier = f"drupe-doctor-{secrets.token_hex(4)}"
    (directory / "rootfs").mkdir()
    (directory / "config.json").write_text(json.dumps(host_config(identifier, argv, linux)))
    command = [path, "--root", str(directory / "state")]
    start = [*command, "run", "--bundle", str(directory), identifier]
    try:
        return run([*_PRIVATE, _HIDE_EMPTY_UNIFIED + 'exec "$@"', "sh", *start])
    except Problem:
        run([*_PRIVATE, _HIDE_EMPTY_UNIFIED + 'exec "$@"', "sh", *command, "delete", "--force", identifier])
        raise


def host_config(identifier: str, argv: list[str], linux: dict[str, Any]) -> dict[str, Any]:
    """config.json of a container that sees the host's programs, read-only."""
    binds = [path for path in ("/usr", "/bin", "/lib", "/lib64", "/nix", "/gnu") if Path(path).is_dir()]
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    ]
    mounts += [{"destination": p, "type": "bind", "source": p, "options": ["rbind", "ro"]} for p in binds]
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]
    return {
        "ociVersion": "1.0.2",
        "process": {"args": argv, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/usr/bin:/bin"]},
        "root": {"path": "rootfs", "readonly": False},
        "mounts": mounts,
        "linux": {"namespaces": namespaces, "cgroupsPath": f"/{identifier}", **linux},
    }


def seccomp() -> str:
    """A filter that refuses uname(2) must make uname(1) fail."""
    path = _any_runtime()
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    }
    with scratch() as directory:
        done = run_container(path, directory, ["/usr/bin/uname"], seccomp=profile)
    if done.code == 0:
        raise Problem("a seccomp filter was accepted and did nothing", "use a kernel with CONFIG_SECCOMP_FILTER")
    if "uname" not in done.stderr:
        raise Problem(done.last_line, "use a kernel with CONFIG_SECCOMP_FILTER and a runtime built with libseccomp")
    return ""


def _any_runtime() -> str:
    try:
        return program("crun", package="crun")
    except Problem:
        return program("runc", package="crun")


def overlay() -> str:
    """Mount an overlay and read a file of its lower layer."""
    script = "mkdir l u w m; echo works >l/f; mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m; cat m/f"
    # A tmpfs, for the directory may itself lie on an overlay, which can't hold an upper layer.
    with scratch() as directory:
        done = run([*_PRIVATE, f"mount -t tmpfs tmpfs {directory}; cd {directory}; {script}"])
    expect(done, "works", mend=_MEND_MODULE.format("overlay"))
    return ""


def user_namespaces() -> str:
    """Be root in a user namespace."""
    done = run(["unshare", "--user", "--map-root-user", "--mount", "id", "-u"])
    expect(done, "0", mend="sysctl -w user.max_user_namespaces=65536 kernel.unprivileged_userns_clone=1")
    return ""


def erofs() -> str:
    """Make an EROFS image, mount it and read a file."""
    try:
        program("mkfs.erofs", package="erofs-utils")
    except Problem as missing:
        raise Inconclusive(f"{missing.cause}: images are unpacked, which works too", missing.mend) from None
    script = (
        "mkdir d m; echo works >d/f; mkfs.erofs i d >/dev/null 2>&1; mount -t erofs -o loop,ro i m; cat m/f; umount m"
    )
    with scratch() as directory:
        done = run([*_PRIVATE, f"cd {directory}; {script}"])
    if done.code != 0 or done.stdout.strip() != "works":
        raise Inconclusive(f"{done.last_line}: images are unpacked, which works too", _MEND_MODULE.format("erofs"))
    return ""


def in_private_network(what: str) -> str:
    """One of the probes of `probe_child`, in a network namespace of its own."""
    done = run(["unshare", "--net", sys.executable, "-m", "drupe.services.probe_child", what])
    if done.code != 0:
        cause, _, mend = done.last_line.partition(" | ")
        raise Problem(cause, mend)
    return ""

"""OCI bundles and the programs that run them: drupe-oci beside runc and crun."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.sandboxers.gvisor.command import veiled
from framework.daemon import Daemon
from framework.leaks import CGROUP_PARENT

COMMAND = Path(sys.executable).with_name("drupe-oci")
APPLETS = "cat chmod date dd df echo env false grep hostname id ip kill ls mkdir mount nice ps pwd readlink sed seq sh sleep sort stat stty sync test touch true tty umask uname wc yes"  # noqa: E501
TIMEOUT_S = 120.0  # a machine begins slowly where all else is busy

# crun refuses a hybrid cgroup tree, and drupe-oci hides it from crun: the same by hand
_HIDDEN = (
    'umount /sys/fs/cgroup/unified 2>/dev/null && mount --bind /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; exec "$@"'
)
WITHOUT_UNIFIED = (
    "unshare",
    "--mount",
    "--propagation",
    "unchanged",
    "sh",
    "-c",
    f"mount --make-private /sys/fs/cgroup; {_HIDDEN}",
    "sh",
)

MOUNTS = (
    ("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
)


def make_rootfs(directory: Path) -> None:
    """busybox, and what a container's mounts need."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "mnt", "run"):
        (directory / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", directory / "bin/busybox")
    for applet in APPLETS.split():
        os.link(directory / "bin/busybox", directory / "bin" / applet)
    (directory / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n")


def config(*args: str, cgroup: str, **changes: Any) -> dict[str, Any]:
    """A plain config.json; `changes` are merged into it, `process` and `linux` one level deeper."""
    names = ("pid", "ipc", "uts", "mount", "network")
    whole: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin", "HOME=/"],
            "cwd": "/",
            "capabilities": {kind: ["CAP_KILL", "CAP_CHOWN"] for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "hostname": "bundle",
        "mounts": [
            {"destination": target, "type": kind, "source": source, "options": options}
            for target, kind, source, options in MOUNTS
        ],
        "linux": {
            "namespaces": [{"type": name} for name in names],
            "cgroupsPath": f"/{CGROUP_PARENT}-{cgroup}",
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        },
    }
    for key, value in changes.items():
        whole[key] = {**whole[key], **value} if key in ("process", "linux") else value
    return whole


def make_bundle(directory: Path, document: Mapping[str, Any], *, rootfs: Path | None = None) -> Path:
    """A bundle directory; its root is made anew, or is a link to a shared one."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "rootfs").exists():
        make_rootfs(directory / "rootfs")
    (directory / "config.json").write_text(json.dumps(document))
    return directory


class Runtime:
    """An OCI runtime's command line, with its state below a directory of the test."""

    def __init__(self, name: str, argv: Sequence[object], *, root: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.argv = [*map(str, argv), "--root", str(root)]
        self.root = root
        self.env = {**os.environ, **(env or {})}

    def __call__(self, *words: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end, output captured. check: a failure is an AssertionError with what it said."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if "input" not in options else {}
        done = subprocess.run(
            [*self.argv, *map(str, words)], env=self.env, capture_output=True, text=True, check=False,
            timeout=TIMEOUT_S, **given, **options,
        )  # fmt: skip
        said = f"{self.name} {words}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert not check or done.returncode == 0, said
        return done

    def create(self, bundle: Path, name: str, output: Path, *words: object) -> int:
        """Create it with a file as its output; returns its pid. A pipe would stay open as long as the container."""
        pid_file = output.with_suffix(".pid")
        argv = [*self.argv, "create", "--bundle", bundle, "--pid-file", pid_file, *words, name]
        with output.open("wb") as out:
            done = subprocess.run(
                [*map(str, argv)], env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False,
                timeout=TIMEOUT_S,
            )  # fmt: skip
        assert done.returncode == 0, output.read_text()
        return int(pid_file.read_text())

    def state(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("state", name).stdout)
        return found


_REFUSED = re.compile(r"config\.json: (.+) is not carried out by|(/\S+ is no block device)")


class Refused(Exception):
    """The kind of sandbox does not carry out a field of the bundle: which."""


class KindRuntime(Runtime):
    """drupe-oci by the name of a kind of sandbox. Raises Refused."""

    def __call__(self, *words: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        done = super().__call__(*words, check=False, **options)
        if found := _REFUSED.search(done.stderr):
            raise Refused(found[1] or found[2])
        assert not check or done.returncode == 0, f"{self.name} {words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done


def of_kind(kind: str, daemon: Daemon, root: Path) -> KindRuntime:
    """Ours, by the kind's name."""
    return KindRuntime(kind, [COMMAND.with_name(f"drupe-oci-{kind}")], root=root, env=daemon.environment())


def runsc(root: Path) -> Runtime:
    """gVisor itself, as drupe starts it: files are the host's, filters are loaded. On kernels where it takes every
    network namespace for the host's, what misleads it is hidden."""
    flags = ("--ignore-cgroups", "--overlay2=none", "--file-access=shared", "--oci-seccomp")
    return Runtime("runsc", [*veiled(["runsc", *flags])], root=root)


def drupe_oci(daemon: Daemon, root: Path, program: Path = COMMAND) -> Runtime:
    """Ours, with the daemon of the test."""
    return Runtime("drupe-oci", [program], root=root, env=daemon.environment())


def crun(root: Path) -> Runtime:
    return Runtime("crun", [*WITHOUT_UNIFIED, "crun"], root=root)


def runc(root: Path) -> Runtime:
    return Runtime("runc", ["runc"], root=root)

"""Linux as a pod of the application kernel has it: a container of runc's over the same files, with the same rights.

The host's root is the lower directory of an overlay, so that programs may write and nothing of it stays; /tmp is
memory, the network is the caller's namespace. Nothing is left of a container, also when it is killed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drupe.oci.capabilities import DEFAULT
from framework.bundles import MOUNTS

# In namespaces that end with the first process: whoever is killed with it takes the container along.
NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
START = """
mount -t tmpfs layers "$1/layers" && mkdir "$1/layers/upper" "$1/layers/own" "$1/layers/state" &&
mount -t overlay -o "lowerdir=/,upperdir=$1/layers/upper,workdir=$1/layers/own" root "$1/root" &&
exec runc --root "$1/layers/state" run --bundle "$1" --no-new-keyring "$2"
"""


def config(command: list[str], cgroup: str) -> dict[str, Any]:
    """config.json: what `drupe-appkernel run` gives its program, as OCI says it."""
    rights = list(DEFAULT)
    mounts = [*MOUNTS, ("/tmp", "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777"])]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": "root"},
        "hostname": "drupe",
        "process": {
            "args": command,
            "cwd": "/",
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=/root"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {kind: rights for kind in ("bounding", "effective", "permitted")},
        },
        "mounts": [{"destination": to, "type": kind, "source": of, "options": how} for to, kind, of, how in mounts],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount")],
        },
    }


@contextmanager
def container(command: list[str]) -> Iterator[list[str]]:
    """The command line that runs `command` so; afterwards nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="drupe-oracle-") as place:
        name = Path(place).name
        for directory in ("layers", "root"):
            (Path(place) / directory).mkdir()
        (Path(place) / "config.json").write_text(json.dumps(config(command, f"/{name}")))
        try:
            yield [*NAMESPACES, "/bin/sh", "-c", START, "sh", place, name]
        finally:
            for cgroup in Path("/sys/fs/cgroup").glob(f"*/{name}"):
                cgroup.rmdir()


def is_there() -> bool:
    """Whether runc is installed and runs containers here."""
    if shutil.which("runc") is None:
        return False
    with container(["/bin/true"]) as argv:
        return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0

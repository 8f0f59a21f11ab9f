"""A guest image whose agent can lie: hostile_agent.py, by Debian's Python, has the line to the host, and the honest
agent, which is the guest's first process as ever, a socket behind it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from drupe.guest.programs import add_program
from drupe.guest.tree import Tree, archive
from framework import machines, probes
from framework.daemon import Daemon

PYTHON = "/usr/bin/python3.11"
LIAR = Path(__file__).with_name("hostile_agent.py")
SOCKET = "/run/honest.sock"
_FIRST = f"""#!/usr/bin/sh
/usr/bin/busybox mount -t proc proc /proc
{PYTHON} -I -S /liar.py {SOCKET} &
exec /sbin/drupe-agent
"""
_IMPORTED = """import sys; sys.argv = [""]; exec(compile(open({path!r}).read(), "", "exec"), {{"__name__": ""}})
print(*{{m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)}}, sep="\\n")"""


def needs() -> None:
    """Skip where it cannot be made or booted."""
    machines.needs_machines()
    probes.needs_path(PYTHON, package="python3")


def start(daemon: Daemon) -> None:
    """Start a daemon whose pods boot it, and make a template of it."""
    _make_root(daemon.root)
    config = daemon.root / "drupe.toml"
    append, boots = f'append = ["drupe.channel=unix:{SOCKET}"]', f"agent_timeout_s = {machines.BOOTS_WITHIN_S}"
    config.write_text(f"[kinds.vm]\n{append}\n{boots}\n")
    daemon.start(env={"DRUPE_CONFIG": str(config)})
    daemon.command("template", "create", check=True, timeout_s=machines.BOOTS_WITHIN_S)


def again(daemon: Daemon) -> None:
    """Start it once more after its end."""
    daemon.start(env={"DRUPE_CONFIG": str(daemon.root / "drupe.toml")})


def _make_root(root: Path) -> None:
    good, init = machines.built() / "guests/default", _tree_of_init()
    guests = root / "guests"
    digest = hashlib.sha256(init + good.resolve().name.encode()).hexdigest()
    (guests / digest).mkdir(parents=True)
    (guests / "default").symlink_to(digest)
    for name in ("guest.json", "kernel"):
        (guests / digest / name).symlink_to(good.resolve() / name)
    (guests / digest / "initrd").write_bytes((good / "initrd").read_bytes() + init)


def _tree_of_init() -> bytes:
    """What the kernel unpacks over the image's own root: with it, what of its library the liar imports."""
    busybox = shutil.which("busybox")
    assert busybox
    tree = Tree()
    tree.copy(Path(busybox), "usr/bin/busybox", 0o755)
    tree.symlink("usr/bin/sh", "busybox")
    tree.file("init", _FIRST.encode(), 0o755)
    tree.copy(LIAR, "liar.py")
    add_program(tree, Path(PYTHON), PYTHON[1:])
    asking = [PYTHON, "-I", "-S", "-c", _IMPORTED.format(path=str(LIAR))]
    imported = subprocess.run(asking, capture_output=True, text=True, check=True).stdout.split()
    for path in {*imported, "/usr/lib/python3.11/os.py"}:
        tree.copy(Path(path), path[1:])
    return archive(tree)

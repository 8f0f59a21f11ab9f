"""Guests that want to harm their host: what a guest's kernel can do with what it is shown of the host's files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.daemon import COMMAND, Daemon
from framework.machines import leaves_nothing
from framework.residue import rss_kib

pytestmark = [pytest.mark.root]


@pytest.fixture
def daemon(machine_daemon: Daemon) -> Iterator[Daemon]:
    yield from leaves_nothing(machine_daemon)


# The guest's own mount of what the host shows; a container that is root with all rights is as good as the kernel.
SHARE = "mkdir /tmp/s && mount -t virtiofs drupe /tmp/s && cd /tmp/s || exit 9"
LEADS_OUT = """
own=$(ls)
for name in a b c; do ln -s {outside} $name; mkdir $name.d; echo x >$name.f; done
mv $own moved; ln -s {outside} $own; rm -rf moved/bind-* moved/rootfs; ln -s {outside} moved/bind-7
ls; ls -l $own; exit 0
"""


def test_what_a_guest_puts_beside_its_roots_leads_nowhere(daemon: Daemon, tmp_path: Path) -> None:
    """The host removes and mounts things there: nothing of it may be the guest's to name."""
    outside = tmp_path / "outside"
    (outside / "empty").mkdir(parents=True)
    (outside / "file").touch()
    words = ("run", "-d", "--name", "one", "--sandbox", "vm", "--network", "none", "--privileged")
    daemon.command(*words, "busybox", "sleep", "1000", check=True)
    script = f"{SHARE}\n{LEADS_OUT.format(outside=outside)}"
    said = daemon.command("exec", "one", "sh", "-c", script, check=True)
    pod = json.loads(daemon.command("inspect", "--type", "pod", "one", check=True).stdout)[0]
    share = daemon.run / "pods" / pod["id"] / "vm/share"
    assert [path.name for path in share.iterdir()] == said.stdout.split()[:1], said
    assert "Read-only file system" in said.stderr
    assert daemon.command("exec", "one", "sh", "-c", "echo mine >/own; cat /own", check=True).stdout == "mine\n"
    copies_out(daemon, outside)
    daemon.command("pod", "rm", "-f", "one", check=True)
    assert sorted(path.name for path in outside.iterdir()) == ["empty", "file"], "the host removed what a link named"


def copies_out(daemon: Daemon, outside: Path) -> None:
    """Links come out as links, what has no end is handed on as it comes, and names lead nowhere."""
    script = f"mkdir /d; ln -s {outside} /d/a; ln -s ../../../../../.. /d/b; truncate -s 1099511627776 /d/c; mkdir /d/x"
    daemon.command("exec", "one", "sh", "-c", script, check=True)
    before = rss_kib(daemon.pid)
    copying = subprocess.Popen([COMMAND, "cp", "one:/d", "-"], env=daemon.environment(), stdout=subprocess.PIPE)
    assert copying.stdout is not None
    taken = sum(len(copying.stdout.read(1 << 20)) for _ in range(128))
    copying.kill()
    copying.stdout.close()
    copying.wait()
    assert taken == 128 << 20
    assert rss_kib(daemon.pid) - before < 64 << 10
    daemon.command("exec", "one", "rm", "/d/c", check=True)
    daemon.command("cp", "one:/d", str(outside.parent / "copy"), check=True)
    assert (outside.parent / "copy/a").is_symlink() and (outside.parent / "copy/b").is_symlink()

"""What serves a machine its files: found and started on hosts of several kinds, and heard when it does not start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from drupe.sandboxers.vm.virtiofsd import find_virtiofsd
from framework import images, machines, probes
from framework.daemon import Daemon
from framework.residue import residue

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]
# as an engine of containers does it to what is not privileged
MASKS = """mount --make-rprivate / && mount --bind /dev/null /proc/keys && mount -t tmpfs -o ro tmpfs /proc/bus || exit
exec "$@" """
FILES = """echo mine >/own && cat /own
cd /given && echo given >>file && chown 12345:23456 file && ln file other && rm file
mkdir -p d/e && mv other d/e/f && cat d/e/f && stat -c %u:%g d/e/f"""


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[Daemon]:
    """Not started: each test has its own way."""
    machines.needs_machines()
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    images.copy_store(busybox, daemon.root)
    machines.make_quick_root(daemon.root)
    yield daemon
    daemon.delete_pods()
    assert residue(daemon) == {}
    assert "Traceback" not in daemon.log.read_text()
    daemon.close()


def configured(daemon: Daemon, **options: str) -> None:
    """Start it with such settings of the kind."""
    config = daemon.root / "drupe.toml"
    config.write_text("[kinds.vm]\n" + "".join(f'{name} = "{value}"\n' for name, value in options.items()))
    daemon.start(env={"DRUPE_CONFIG": str(config)})


def run(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    flags = ("run", "--sandbox", "vm", "--network", "none")
    return daemon.command(*flags, *words, timeout_s=machines.BOOTS_WITHIN_S)


def in_a_container(daemon: Daemon, masks: str) -> None:
    """Start it where parts of /proc are covered."""
    daemon.program = ["unshare", "--mount", "sh", "-c", masks, "sh", *Daemon.program]
    daemon.start(kept=False)


def test_a_daemon_whose_proc_is_masked(daemon: Daemon) -> None:
    """A container of the host: the kernel gives virtiofsd a /proc only if there is a whole one."""
    in_a_container(daemon, MASKS)
    done = run(daemon, "--rm", "busybox", "echo", "served")
    assert (done.stdout, done.returncode) == ("served\n", 0), done.stderr


def test_a_machine_that_a_daemon_of_before_has_made(daemon: Daemon) -> None:
    """Made and not started, it has no user namespace for virtiofsd: one is made when it is started."""
    daemon.start()
    flags = ("--name", "old", "--sandbox", "vm", "--network", "none")
    daemon.command("create", *flags, "busybox", "sleep", "1000", check=True)
    home = daemon.run / "pods" / machines.pod_of(daemon, "old")["id"] / "vm"
    inside = ["nsenter", f"--mount=/proc/{daemon.keeper_pid}/ns/mnt", "--"]
    subprocess.run([*inside, "umount", "--recursive", home / "users"], check=True)
    shutil.rmtree(home / "users")
    daemon.kill()
    daemon.start()  # what was made is there yet: a removed one would be made anew, and prove nothing
    assert machines.pod_of(daemon, "old")["state"] == "ready" and not (home / "users").exists()
    daemon.command("start", "old", check=True, timeout_s=machines.BOOTS_WITHIN_S)
    assert daemon.command("exec", "old", "echo", "here", check=True).stdout == "here\n"


@pytest.mark.parametrize("legacy", [True, False], ids=["in C", "in Rust"])
def test_one_that_does_not_start_says_why(daemon: Daemon, tmp_path: Path, legacy: bool) -> None:
    """Its own words, not only those of the monitor that waits for it in vain; and nothing is left."""
    version = "virtiofsd version 7.2" if legacy else "virtiofsd 1.13.0"
    broken = tmp_path / "virtiofsd"
    script = f'case "$*" in --version) echo {version};; *) echo "it has no wish to: $*" >&2; exit 3;; esac'
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    configured(daemon, virtiofsd=str(broken))
    done = run(daemon, "--rm", "busybox", "true")
    assert done.returncode == 125 and "it has no wish to" in done.stderr, done.stderr
    assert ("-o source=" if legacy else "--shared-dir=") in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_one_that_is_not_there(daemon: Daemon) -> None:
    configured(daemon, virtiofsd="/nowhere/virtiofsd")
    done = run(daemon, "--rm", "busybox", "true")
    assert done.returncode == 125 and "virtiofsd is not at /nowhere/virtiofsd" in done.stderr, done.stderr


def programs() -> Sequence[str]:
    """Those of both makes that are here. $DRUPE_TEST_VIRTIOFSD: one that was built or unpacked."""
    named = os.environ.get("DRUPE_TEST_VIRTIOFSD", "")
    places = (named, "/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
    return [place for place in places if place and Path(place).exists()]


@pytest.mark.parametrize("program", programs())
def test_files_by_each_that_is_installed(daemon: Daemon, tmp_path: Path, program: str) -> None:
    """Written, linked, renamed and given away; what is bound later; and the rights that it has on the host."""
    probes.needs_path(find_virtiofsd(), package="qemu-system-common")
    configured(daemon, virtiofsd=program)
    (tmp_path / "given").mkdir()
    (tmp_path / "given/file").write_text("of the host\n")
    (tmp_path / "later").mkdir()
    (tmp_path / "later/file").write_text("later\n")
    flags = ("-d", "--name", "one", "-v", f"{tmp_path / 'given'}:/given")
    assert run(daemon, *flags, "busybox", "sleep", "1000").returncode == 0
    said = daemon.command("exec", "one", "sh", "-c", FILES, check=True).stdout
    assert said == "mine\nof the host\ngiven\n12345:23456\n"
    assert (tmp_path / "given/d/e/f").stat().st_uid == 12345
    more = ("-d", "--pod", "one", "--name", "two", "-v", f"{tmp_path / 'later'}:/later:ro")
    daemon.command("run", *more, "busybox", "sleep", "1000", check=True)
    assert daemon.command("exec", "two", "cat", "/later/file", check=True).stdout == "later\n"
    assert daemon.command("exec", "two", "sh", "-c", "echo x >/later/file").returncode != 0
    assert daemon.command("exec", "one", "mknod", "/node", "b", "8", "0").returncode != 0
    confined(daemon)
    daemon.command("restart", "-t", "0", "one", check=True, timeout_s=machines.BOOTS_WITHIN_S)
    assert daemon.command("exec", "one", "cat", "/own", check=True).stdout == "mine\n"


def confined(daemon: Daemon) -> None:
    """It sees nothing but the share, and has no right on the host."""
    home = daemon.run / "pods" / machines.pod_of(daemon, "one")["id"] / "vm"
    waits = int((home / "virtiofsd.pid").read_text())
    serves = int(Path(f"/proc/{waits}/task/{waits}/children").read_text())
    assert not Path(f"/proc/{serves}/root/etc").exists()
    for space in ("mnt", "net", "pid", "user"):
        assert Path(f"/proc/{serves}/ns/{space}").readlink() != Path(f"/proc/self/ns/{space}").readlink()
    status = dict(
        line.split(":\t") for line in Path(f"/proc/{serves}/status").read_text().splitlines() if ":\t" in line
    )
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapEff"], 16) & ~0x8000_00DB == 0  # FOWNER and its like: tests/integration/test_vm.py
    assert json.loads(daemon.command("inspect", "one", check=True).stdout)

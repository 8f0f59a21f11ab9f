"""Images whose files are traps for whoever makes a container of them, in each kind of sandbox that runs Linux programs.

Links that lead out of the root, places of mounts that are no places, programs that cannot be loaded: the container
runs, or there is one clear line; the host's files stay as they are.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework.daemon import Daemon
from framework.probes import needs_program

pytestmark = pytest.mark.root

KINDS = ("runc", "gvisor", "appkernel")
OUT = "../" * 16
# where the loader of an image that is not this processor's would be
_FOREIGN = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x16\x00" + bytes(44)  # EM_S390

Tree = Callable[[Path, str], None]  # makes a layer, given a directory of the host that it must not reach


def _links_out(layer: Path, host: str) -> None:
    (layer / "etc").mkdir()
    for name in ("hosts", "resolv.conf", "hostname"):
        (layer / "etc" / name).symlink_to(f"{OUT}{host}/{name}")


def _etc_leads_out(layer: Path, host: str) -> None:
    (layer / "etc").symlink_to(f"{OUT}{host}")


def _devices_lead_out(layer: Path, host: str) -> None:
    (layer / "dev").symlink_to(host)


def _processes_are_a_file(layer: Path, host: str) -> None:
    (layer / "proc").write_text(host)


def _hosts_is_a_fifo(layer: Path, _host: str) -> None:
    (layer / "etc").mkdir()
    os.mkfifo(layer / "etc/hosts")


def _hosts_is_a_loop(layer: Path, _host: str) -> None:
    (layer / "etc").mkdir()
    (layer / "etc/hosts").symlink_to("hosts")


TRAPS: tuple[Tree, ...] = (
    _links_out, _etc_leads_out, _devices_lead_out, _processes_are_a_file, _hosts_is_a_fifo, _hosts_is_a_loop,
)  # fmt: skip
PROGRAMS = {
    b"": (126, "its format is unknown"),
    _FOREIGN: (126, "another processor"),
    b"#!/nowhere/sh\n": (127, "needs '/nowhere/sh'"),
    b"#!/program\n": (126, "an interpreter"),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "gvisor":
        needs_program("runsc")
    return str(request.param)


@pytest.fixture(scope="module")
def images(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Each trap as an image of its name; yields the directory of the host that they are after."""
    host = tmp_path_factory.mktemp("host")
    for trap in TRAPS:
        layer = tmp_path_factory.mktemp("layer")
        trap(layer, str(host))
        _build(daemon, layer, trap.__name__)
    yield host


def _build(daemon: Daemon, layer: Path, name: str) -> None:
    tag = name.strip("_").replace("_", "-")
    daemon.command("image", "build", "--quiet", "--base", "busybox", "-t", tag, str(layer), check=True)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__.strip("_"))
def test_a_trap_catches_nobody(daemon: Daemon, images: Path, kind: str, trap: Tree) -> None:
    done = run(daemon, kind, trap.__name__, "sh", "-c", "echo x >/etc/made; echo x >/dev/made; ls /dev/null")
    assert done.returncode == 0 or 125 <= done.returncode <= 127, done
    said = [line for line in done.stderr.splitlines() if line.startswith("drupe: ")]
    assert len(said) == (done.returncode != 0), done.stderr
    assert not any(images.iterdir())
    assert daemon.command("ps", "--all", "--quiet", check=True).stdout == ""


def test_names_are_looked_up_behind_a_link_that_leads_nowhere_yet(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    """As many images have it, whose init would make the file."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    _build(daemon, tmp_path, "systemd")
    plain = run(daemon, kind, "busybox", "cat", "/etc/resolv.conf")
    done = run(daemon, kind, "systemd", "cat", "/run/systemd/resolve/stub-resolv.conf")
    assert (done.returncode, done.stdout) == (0, plain.stdout), done


def test_a_program_in_a_volume_is_found_over_a_link(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "tool").symlink_to("/data/tool")
    _build(daemon, tmp_path, "linked")
    (volume := tmp_path / "volume").mkdir()
    (volume / "tool").write_text("#!/bin/sh\necho from the volume\n")
    (volume / "tool").chmod(0o755)
    done = run(daemon, "runc", "linked", "/tool", options=("-v", f"{volume}:/data"))
    assert (done.returncode, done.stdout) == (0, "from the volume\n"), done


@pytest.mark.parametrize("content", PROGRAMS, ids=lambda content: str(len(content)))
def test_what_cannot_be_loaded_is_one_line(daemon: Daemon, tmp_path: Path, content: bytes) -> None:
    """Whatever the kind, it is seen before one is asked; crun would tell the container's output."""
    code, words = PROGRAMS[content]
    (tmp_path / "program").write_bytes(content)
    (tmp_path / "program").chmod(0o755)
    _build(daemon, tmp_path, "program")
    done = run(daemon, "runc", "program", "/program")
    assert done.returncode == code and words in done.stderr, done
    assert done.stderr.startswith("drupe: "), done.stderr


@pytest.mark.parametrize("place", ["a file", "/proc/self/fd/7", "a loop"])
def test_a_working_directory_is_one_or_refused(daemon: Daemon, tmp_path: Path, kind: str, place: str) -> None:
    where = tmp_path / "w"
    if place == "a file":
        where.write_text("x")
    else:
        where.symlink_to("w" if place == "a loop" else place)
    _build(daemon, tmp_path, "directory")
    done = run(daemon, kind, "directory", "pwd", options=("--workdir", "/w"))
    assert (done.returncode, done.stdout) == (125, ""), done


def run(
    daemon: Daemon, kind: str, name: str, *argv: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    image = name.strip("_").replace("_", "-")
    return daemon.command("run", "--rm", "--sandbox", kind, *options, image, *argv)

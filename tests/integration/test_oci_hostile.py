"""Callers of stand-ins that mean no good, or are killed: wrong bundles, deaths in the middle of each verb.

What is wrong is one clear line and exit code 1; nothing is left, whoever dies when.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framework import bundles, guests
from framework.bundles import KindRuntime, config, make_bundle
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.probes import FULL, needs_full, needs_program
from framework.residue import residue

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
FOREVER = ("sleep", "1000")
# a piece of config.json, and a word of the line that refuses it
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "arguments that are a text": ({"process": {"args": "true"}}, "$.process.args"),
    "no arguments": ({"process": {"args": []}}, "process.args"),
    "an environment of numbers": ({"process": {"env": [1]}}, "$.process.env"),
    "a user without a number": ({"process": {"user": {"uid": "root"}}}, "$.process.user.uid"),
    "a user below zero": ({"process": {"user": {"uid": -1}}}, "$.process.user.uid"),
    "a relative directory": ({"process": {"cwd": "tmp"}}, "process.cwd"),
    "a limit of no name": ({"process": {"rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}}, "RLIMIT_X"),
    "a limit above its own": ({"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 1}]}}, "rlimits"),
    "a root that is not there": ({"root": {"path": "/nope"}}, "/nope"),
    "a root that is a file": ({"root": {"path": "/etc/passwd"}}, "/etc/passwd"),
    "a mount of nothing": ({"mounts": [{"source": "x"}]}, "$.mounts[0]"),
    "a mount to nowhere": ({"mounts": [{"destination": "", "type": "tmpfs"}]}, "destination"),
    "a bind of what is not there": (
        {"mounts": [{"destination": "/x", "type": "bind", "source": "/nope", "options": ["bind"]}]}, "/nope",
    ),
    "a namespace of no kind": ({"linux": {"namespaces": [{"type": "soul"}]}}, "soul"),
    "a namespace twice": ({"linux": {"namespaces": [{"type": "mount"}, {"type": "mount"}]}}, "twice"),
    "a cgroup above": ({"linux": {"cgroupsPath": "/../../up"}}, "cgroup"),
    "a hook that is no program": ({"hooks": {"createRuntime": [{"path": "true"}]}}, "hooks"),
    "a program that is not there": ({"process": {"args": ["/nope/at/all"]}}, "/nope/at/all"),
    "a NUL in an argument": ({"process": {"args": ["true", "a\0b"]}}, "NUL"),
}  # fmt: skip


class Site:
    """A kind behind its stand-ins, with a daemon, below a directory of the test."""

    def __init__(self, kind: str, daemon: Daemon, directory: Path) -> None:
        self.kind, self.daemon, self.directory = kind, daemon, directory
        self.oci = KindRuntime(
            kind, [bundles.COMMAND.with_name(f"drupe-oci-{kind}")], root=directory / "state", env=daemon.environment()
        )

    def bundle(self, *args: str, **changes: Any) -> Path:
        place = self.directory / "bundle"
        if self.kind == "wasm" and not place.exists():
            guests.make_rootfs(place / "rootfs")
        return make_bundle(place, config(*args, cgroup=self.directory.name[-20:], **changes))

    def call(self, *words: object) -> subprocess.Popen[bytes]:
        """Begin a call, its output in a file: a container keeps what it was given."""
        with (self.directory / "said").open("ab") as out:
            return subprocess.Popen(
                [*self.oci.argv, *map(str, words)], env=self.oci.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def clean(self) -> bool:
        """Delete what there is; whether nothing is left."""
        for name in self.oci("list", "--quiet").stdout.split():
            self.oci("delete", "--force", name, check=False)
        return self.oci("list", "--quiet").stdout == "" and list((self.directory / "state").glob("*/*")) == []


@pytest.fixture(params=["gvisor", "wasm", "appkernel"])
def site(request: pytest.FixtureRequest, daemon: Daemon, tmp_path: Path) -> Iterator[Site]:
    needs_program("crun", *(["runsc"] if request.param == "gvisor" else []))
    if request.param == "wasm":
        pytest.importorskip("wasmtime")
    made = Site(request.param, daemon, tmp_path)
    yield made
    wait_until(made.clean, what="nothing is left to delete", timeout_s=60)
    wait_until(lambda: residue(daemon) == {}, what="nothing is left", timeout_s=60)


def test_wrong_bundles_are_one_line_and_leave_nothing(site: Site) -> None:
    wrong = []
    for name, (changes, word) in WRONG.items():
        done = refused(site, site.bundle("true", **changes))
        first = done.stderr.partition("\n")[0]
        if done.returncode != 1 or word not in first or "Traceback" in done.stderr:
            wrong.append(f"{name}: {done.returncode} {done.stderr!r}")
    assert wrong == []


def refused(site: Site, made: Path) -> subprocess.CompletedProcess[str]:
    """A call that is to fail; also what is refused as not carried out is an answer here."""
    words = [*site.oci.argv, "run", "--bundle", str(made), "c1"]
    return subprocess.run(
        words, env=site.oci.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )


# what is there when the verb that dies begins
VERBS: dict[str, tuple[tuple[str, ...], Callable[[Site], list[str]]]] = {
    "create": ((), lambda site: ["create", "--bundle", str(site.bundle(*FOREVER)), "c1"]),
    "run": ((), lambda site: ["run", "--detach", "--bundle", str(site.bundle(*FOREVER)), "c1"]),
    "start": (("create",), lambda site: ["start", "c1"]),
    "exec": (("run",), lambda site: ["exec", "c1", *FOREVER]),
    "delete": (("run",), lambda site: ["delete", "--force", "c1"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_whoever_is_killed_leaves_what_delete_removes(site: Site, verb: str) -> None:
    """A caller that is killed at some moment of its call: its container can be deleted then, and its id used again."""
    if site.kind == "wasm" and verb == "exec":
        pytest.skip("a module's container takes no further process")
    before, words = VERBS[verb]
    for number in range(15) if FULL else (0, 2):
        for step in before:
            done = site.call(*VERBS[step][1](site))
            assert done.wait(120) == 0, (site.directory / "said").read_text()
        dying = site.call(*words(site))
        with contextlib.suppress(subprocess.TimeoutExpired):
            dying.wait(number * 0.02)
        dying.kill()
        dying.wait()
        wait_until(site.clean, what=f"{verb} {number}: nothing is left to delete", timeout_s=120)


def test_many_deaths_at_once(site: Site) -> None:
    needs_full("a crowd of callers that are killed")
    made = site.bundle(*FOREVER, linux={"cgroupsPath": ""})
    for number in range(5):
        crowd = [site.call("run", "--detach", "--bundle", made, f"c{number}-{one}") for one in range(8)]
        for at, dying in enumerate(crowd):
            with contextlib.suppress(subprocess.TimeoutExpired):
                dying.wait(at * 0.03)
            dying.kill()
            dying.wait()
        wait_until(site.clean, what="nothing is left to delete", timeout_s=120)

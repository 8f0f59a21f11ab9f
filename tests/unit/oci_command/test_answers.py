"""What drupe-oci is told to do, for a node whose runc kind is a program that is never run."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drupe.errors import InvalidArgument, Unsupported
from drupe.runtime.paths import Paths
from drupe.sandboxers.bundles import BundleProgram
from drupe.services.oci.service import answer
from drupe.spec.node import NodeConfig, PolicyRule
from drupe.spec.oci import OciAnswer, OciAsk, OciRun

BUNDLE = {
    "ociVersion": "1.0.2",
    "root": {"path": "rootfs"},
    "process": {"args": ["x"], "cwd": "/", "env": ["A=1"], "user": {"uid": 5, "gid": 6, "additionalGids": [7]}},
    "linux": {"namespaces": [{"type": name} for name in ("pid", "network", "ipc", "uts", "mount")]},
}


class Keeper:
    """Tells a version, as the program would."""

    def __init__(self, version: str) -> None:
        self.version = version

    async def run(self, argv: list[str], **_: Any) -> Any:
        assert argv == ["/exe", "--version"]
        return SimpleNamespace(stdout=self.version)


class Site:
    """A caller with a directory of its own, before a node."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = NodeConfig()
        self.program = "crun"
        self.pid = os.getpid()
        self.version = "crun version 1.8.1\ncommit: x"

    def sandboxer(self, kind: str) -> Any:
        if kind not in ("runc", "someday"):
            raise InvalidArgument(f"unknown sandbox kind {kind!r}")
        if kind == "someday":
            raise Unsupported("not here")
        keeper: Any = Keeper(self.version)
        found = BundleProgram(kind, self.program, path="/path", executable=lambda: "/exe", keeper=keeper)
        return SimpleNamespace(bundle_program=lambda: found)

    def ask(self, *argv: str, name: str = "drupe-oci", **more: Any) -> OciAnswer:
        paths = Paths(root=self.directory / "r", run=self.directory / "run")
        node: Any = SimpleNamespace(
            sandboxer=self.sandboxer, config=self.config, paths=paths, require_open=lambda: None
        )
        none: Any = {name: lambda root, id_: None for name in ("find", "is_being_made")}
        bundles: Any = SimpleNamespace(core=SimpleNamespace(node=node), of=lambda root: iter(()), **none)
        root = os.open("/", os.O_PATH)
        try:
            call = OciAsk(name=name, argv=argv, cwd=str(self.directory), **more)
            return asyncio.run(answer(call, root_fd=root, pid=self.pid, bundles=bundles))
        finally:
            os.close(root)

    def bundle(self, **changes: Any) -> None:
        (self.directory / "rootfs").mkdir(exist_ok=True)
        (self.directory / "config.json").write_text(json.dumps(BUNDLE | changes))

    def container(self, name: str, home: str = "runc-crun") -> None:
        place = self.directory / "run/bundles" / home / name
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(BUNDLE))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.bundle()
    return made


def test_create_becomes_the_program(site: Site) -> None:
    said = site.ask("--log", "/l", "--log-format", "json", "--systemd-cgroup", "create", "--pid-file", "p", "c1")
    home = f"{site.directory}/run/bundles/runc-crun"
    assert said.execute == [
        "/exe", "--root", home, "--systemd-cgroup", "--log=/l", "--log-format=json",
        "create", "--bundle", str(site.directory), "--pid-file", f"{site.directory}/p", "c1",
    ]  # fmt: skip
    assert (said.fallback, said.hide_cgroup, said.texts) == ("/path", True, {})


def test_what_lies_in_our_proc_is_lent_only_to_who_sees_it(site: Site) -> None:
    site.pid = 0  # of a PID namespace that we cannot see into
    assert site.ask("create", "c1").execute[0] == "/path"


def test_a_crun_that_knows_only_its_own_version_gets_that(site: Site) -> None:
    site.bundle(ociVersion="1.2.0")
    said = site.ask("create", "c1")
    [(name, text)] = said.texts.items()
    assert said.execute[-3:] == ["--config", name, "c1"]
    assert json.loads(text) == BUNDLE
    site.version = "crun version 1.15"
    assert site.ask("create", "c1").texts == {}


def test_fields_are_refused_until_the_program_knows_them(site: Site) -> None:
    site.bundle(process=BUNDLE["process"] | {"scheduler": {"policy": "SCHED_BATCH"}})  # type: ignore[operator]
    said = site.ask("create", "c1")
    assert said.code == 1 and "process.scheduler is not carried out by crun 1.8.1" in said.stderr
    assert "crun 1.8.5 or later" in said.stderr
    site.version = "crun version 1.8.5"
    assert site.ask("create", "c1").execute
    site.program, site.version = "runc", "runc version 1.1.5+ds1"
    assert "runc 1.2 or later" in site.ask("create", "c1").stderr


def test_unknown_properties_are_ignored_as_the_specification_says(site: Site) -> None:
    site.bundle(later={"thing": 1}, hooks=None, annotations=None)
    assert site.ask("create", "c1").execute


@pytest.mark.usefixtures("planned")
def test_the_kind(site: Site) -> None:
    assert site.ask("create", "c1", name="drupe-oci-runc").execute
    assert "sandbox kind 'someday'" in site.ask("create", "c1", name="drupe-oci-someday").stderr
    site.bundle(annotations={"drupe.kind": "someday"})
    assert "sandbox kind 'someday'" in site.ask("create", "c1").stderr
    assert "says 'someday', and this is drupe-oci-runc" in site.ask("create", "c1", name="drupe-oci-runc").stderr
    site.bundle()
    site.config = NodeConfig(sandbox="someday")
    assert "sandbox kind 'someday'" in site.ask("create", "c1").stderr
    site.config = NodeConfig(sandbox="auto")
    assert site.ask("create", "c1").execute


def test_the_nodes_policy_holds_for_bundles_too(site: Site) -> None:
    site.config = NodeConfig(policy=(PolicyRule(name="strong", minimum="kernel"),))
    assert "policy rule 'strong'" in site.ask("create", "c1").stderr
    site.config = NodeConfig(policy=(PolicyRule(name="net", deny=("host-network",)),))
    assert site.ask("create", "c1").execute
    site.bundle(linux={"namespaces": [{"type": "pid"}]})
    assert "forbids 'host-network'" in site.ask("create", "c1").stderr
    site.config = NodeConfig(policy=(PolicyRule(name="some", minimum="namespaces", deny=("devices",)),))
    site.bundle(process=BUNDLE["process"] | {"capabilities": {"bounding": ["CAP_SYS_ADMIN"]}})  # type: ignore[operator]
    assert "a pod with 'privileged' has none" in site.ask("create", "c1").stderr
    site.bundle(linux=BUNDLE["linux"] | {"devices": [{"type": "c", "path": "/dev/x", "major": 1, "minor": 3}]})  # type: ignore[operator]
    assert "forbids 'devices'" in site.ask("create", "c1").stderr


def test_a_process_is_the_containers_own_with_changes(site: Site) -> None:
    site.container("c1")
    said = site.ask("exec", "-e", "B=2", "--user", "1:2", "-g", "9", "-t", "-d", "c1", "ls", "-l")
    assert said.execute[3:] == ["exec", "--detach", "--tty", "--process", "@text", "c1"]
    assert json.loads(said.texts["@text"]) == {
        "args": ["ls", "-l"], "cwd": "/", "env": ["A=1", "B=2"], "terminal": True,
        "user": {"uid": 1, "gid": 2, "additionalGids": [7, 9]},
    }  # fmt: skip
    assert site.ask("exec", "c1").code == 255


def test_state_is_asked_of_the_program_and_completed(site: Site) -> None:
    site.container("c1")
    first = site.ask("state", "c1")
    assert first.runs["state"][-2:] == ["state", "c1"]
    ran = OciRun(code=0, stdout='{"id": "c1", "pid": 4, "status": "running", "bundle": "/b", "rootfs": "r", "x": 1}')
    state = json.loads(site.ask("state", "c1", runs={"state": ran}).stdout)
    assert state == {
        "ociVersion": "1.2.0", "id": "c1", "pid": 4, "status": "running", "bundle": "/b", "rootfs": "/b/r",
        "annotations": {},
    }  # fmt: skip
    failed = site.ask("state", "c1", runs={"state": OciRun(code=1, stderr="it is broken\n")})
    assert failed.code == 1 and "it is broken" in failed.stderr


def test_limits_by_flags(site: Site) -> None:
    site.container("c1")
    said = site.ask("update", "--memory", "64m", "--memory-swap", "-1", "--cpuset-cpus", "0-1", "--pids-limit=5", "c1")
    assert json.loads(said.texts["@text"]) == {
        "memory": {"limit": 67108864, "swap": -1}, "cpu": {"cpus": "0-1"}, "pids": {"limit": 5},
    }  # fmt: skip
    assert "nothing to change" in site.ask("update", "c1").stderr
    assert "not a number" in site.ask("update", "--pids-limit", "x", "c1").stderr
    assert site.ask("update", "-r", "-", "c1").want_text == "-"
    assert site.ask("update", "-r", "-", "c1", text="{}").execute


def test_listing(site: Site) -> None:
    site.container("b")
    site.container("a")
    site.container("x", home="nonsense-crun")  # of no kind: somebody else's
    first = site.ask("list")
    assert list(first.runs) == ["runc-crun"]
    entries = [
        {"id": name, "pid": 1, "status": "running", "bundle": "/b", "created": "t", "owner": "root"} for name in "ba"
    ]
    runs = {"runc-crun": OciRun(code=0, stdout=json.dumps(entries))}
    assert site.ask("list", "-q", runs=runs).stdout == "a\nb\n"
    table = site.ask("list", runs=runs).stdout.splitlines()
    assert table[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert table[1].split() == ["a", "1", "running", "/b", "t", "root"]
    assert "table or json" in site.ask("list", "--format", "xml", runs=runs).stderr


def test_ps_keeps_only_the_containers_lines(site: Site) -> None:
    site.container("c1")
    assert set(site.ask("ps", "c1").runs) == {"pids", "ps"}
    table = "UID   PID  CMD\nroot    1  init\nroot   12  ours\nroot  112  other\n"
    runs = {"pids": OciRun(code=0, stdout="[12]"), "ps": OciRun(code=0, stdout=table)}
    assert site.ask("ps", "c1", runs=runs).stdout == "UID   PID  CMD\nroot   12  ours\n"
    assert site.ask("ps", "-f", "json", "c1", runs=runs).stdout == "[12]\n"


def test_errors_have_a_line_for_the_log(site: Site) -> None:
    said = site.ask("--log", "l", "--log-format=json", "state", "c1")
    assert (said.log, said.code) == (f"{site.directory}/l", 1)
    assert json.loads(said.log_line)["msg"] == "container does not exist"
    said = site.ask("--log-format", "json", "state", "c1")
    assert json.loads(said.stderr)["level"] == "error"
    assert site.ask("delete", "-f", "c1") == OciAnswer()

"""`drupe setup`: what is added to files of others, and that nothing of theirs is lost."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from drupe.errors import DrupeError, InvalidArgument, Unsupported
from drupe.services.probing import Problem
from drupe.services.setup import checks, containerd, docker, plan, podman

Tools = Callable[[str, str], None]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """A program that says its version, and nothing else."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("DRUPE_CONFIG", str(tmp_path / "drupe.toml"))

    def install(name: str, says: str) -> None:
        (programs / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (programs / name).chmod(0o755)

    return install


def test_a_block_is_replaced_and_what_stands_around_it_stays() -> None:
    first = plan.with_block("a = 1\n", "[b]\n")
    assert first.startswith("a = 1\n\n# >>> drupe setup") and plan.without_block(first) == "a = 1\n"
    assert plan.with_block(first, "[b]\n") == first
    moved = first + "\n[later]\nx = 2\n"
    assert tomllib.loads(plan.with_block(moved, "[c]\n")) == {"a": 1, "later": {"x": 2}, "c": {}}


@pytest.mark.parametrize(
    ("version", "file", "plugin", "sandboxed"),
    [
        ("1.6.20", "", "io.containerd.grpc.v1.cri", False),
        ("1.7.24", "version = 2\n", "io.containerd.grpc.v1.cri", False),
        ("2.1.9", "", "io.containerd.cri.v1.runtime", True),
        ("2.1.9", "version = 2\n", "io.containerd.grpc.v1.cri", True),
        ("2.4.0", "version = 3\n[grpc]\naddress = '/x'\n", "io.containerd.cri.v1.runtime", True),
    ],
)
def test_containerd_of_each_version(
    installed: Tools, tmp_path: Path, version: str, file: str, plugin: str, sandboxed: bool
) -> None:
    installed("containerd", f"containerd github.com/containerd/containerd {version} abc")
    path = tmp_path / "config.toml"
    if file:
        path.write_text(file)
    found = containerd.plan(config=path, run_dir=Path("/run/drupe"))
    settings = tomllib.loads(found.files[0].content)
    runtimes = settings["plugins"][plugin]["containerd"]["runtimes"]
    assert {"drupe", "drupe-runc", "drupe-gvisor", "drupe-wasm"} <= set(runtimes)
    assert ("proxy_plugins" in settings) is sandboxed is ("sandboxer" in runtimes["drupe-wasm"])
    kind = "" if sandboxed else "-wasm"  # without a sandboxer, the name of the shim is all that says the kind
    assert runtimes["drupe-wasm"]["runtime_type"] == f"io.containerd.drupe{kind}.v2"
    asked_for_features = runtimes["drupe-runc"]["runtime_type"] == "io.containerd.runc.v2"
    assert asked_for_features is sandboxed is ("options" in runtimes["drupe-runc"])
    assert [Path(each.path).name for each in found.files] == ["config.toml", *(["drupe.toml"] if sandboxed else [])]


@pytest.mark.parametrize(
    ("version", "text", "error", "words"),
    [
        ("1.5.1", "", Unsupported, "too old"),
        ("1.6.20", "version = 3\n", InvalidArgument, "does not read version 3"),
        ("1.6.20", "root = '/x'\n", Unsupported, "version 1"),
        ("2.1.9", "version = 3\nx = = 1\n", InvalidArgument, "not valid TOML"),
        ("2.1.9", "version = 3\nproxy_plugins = {}\n", InvalidArgument, "says already"),
        (
            "2.1.9",
            "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.drupe]\nsandboxer = 'x'\n",
            InvalidArgument,
            "says already",
        ),
    ],
)
def test_a_configuration_that_cannot_be_added_to(
    installed: Tools, tmp_path: Path, version: str, text: str, error: type[DrupeError], words: str
) -> None:
    installed("containerd", f"containerd {version}")
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(error, match=words):
        containerd.plan(config=tmp_path / "config.toml", run_dir=tmp_path)


def test_our_own_switch_is_set_once(installed: Tools, tmp_path: Path) -> None:
    installed("containerd", "containerd 2.1.9")
    ours = tmp_path / "drupe.toml"
    ours.write_text('sandbox = "auto"\n')
    file = containerd.plan(config=tmp_path / "c.toml", run_dir=tmp_path).files[1]
    assert tomllib.loads(file.content) == {"sandbox": "auto", "containerd": {"sandboxer": True}}
    ours.write_text('[containerd]\nsandboxer = true\nsocket = "/x"\n')
    assert not containerd.plan(config=tmp_path / "c.toml", run_dir=tmp_path).files[1].changed
    ours.write_text('[containerd]\nsocket = "/x"\n')
    with pytest.raises(InvalidArgument, match=r"\[containerd\] without sandboxer"):
        containerd.plan(config=tmp_path / "c.toml", run_dir=tmp_path)


def test_daemon_json_is_merged(installed: Tools, tmp_path: Path) -> None:
    installed("dockerd", "Docker version 28.5.2+dfsg1, build abc")
    path = tmp_path / "daemon.json"
    path.write_text('{\n\t"data-root": "/é",\n\t"runtimes": {"kata": {"runtimeType": "io.containerd.kata.v2"}}\n}')
    file = docker.plan(config=path, run_dir=tmp_path).files[0]
    settings = json.loads(file.content)
    assert settings["data-root"] == "/é" and settings["runtimes"]["kata"] == {"runtimeType": "io.containerd.kata.v2"}
    assert settings["runtimes"]["drupe-wasm"] == {"runtimeType": "io.containerd.drupe-wasm.v2"}
    assert '\n\t"data-root": "/é"' in file.content
    path.write_text(file.content)
    assert not docker.plan(config=path, run_dir=tmp_path).files[0].changed
    installed("dockerd", "Docker version 20.10.24+dfsg1")
    older = json.loads(docker.plan(config=path, run_dir=tmp_path).files[0].content)["runtimes"]
    assert older["drupe-wasm"]["path"].endswith("/drupe-oci-wasm")


@pytest.mark.parametrize("text", ["[]", '{"runtimes": []}', "{", '{"a": 1,}'])
def test_a_daemon_json_that_is_none(installed: Tools, tmp_path: Path, text: str) -> None:
    installed("dockerd", "Docker version 28.5.2")
    (tmp_path / "daemon.json").write_text(text)
    with pytest.raises(InvalidArgument, match=r"daemon\.json"):
        docker.plan(config=tmp_path / "daemon.json", run_dir=tmp_path)


def test_podman_gets_a_file_of_its_own(installed: Tools, tmp_path: Path) -> None:
    installed("podman", "podman version 4.3.1")
    file = podman.plan(config=tmp_path / "conf.d/drupe.conf", run_dir=tmp_path).files[0]
    assert tomllib.loads(file.content)["engine"]["runtimes"]["drupe"][0].endswith("/drupe-oci")
    assert file.old is None and podman.plan(run_dir=tmp_path).files[0].path.endswith("containers.conf.d/drupe.conf")


def test_what_is_not_installed_is_said(installed: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for make in (containerd.plan, docker.plan, podman.plan):
        with pytest.raises(DrupeError, match="is not installed"):
            make(run_dir=tmp_path)


def test_writing_keeps_the_old_file_its_mode_and_its_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "config.toml"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    done = plan.write(plan.File(path=str(link), content="new", old="old"))
    assert link.is_symlink() and real.read_text() == "new" and real.stat().st_mode & 0o777 == 0o640
    assert Path(done.backup).read_text() == "old" and Path(done.backup).stat().st_mode & 0o777 == 0o640
    second = plan.write(plan.File(path=str(link), content="newer", old="new"))
    assert second.backup != done.backup and Path(second.backup).read_text() == "new"
    assert plan.write(plan.File(path=str(link), content="newer", old="newer")).backup == ""
    fresh = plan.write(plan.File(path=str(tmp_path / "a/b.conf"), content="x"))
    assert fresh.backup == "" and Path(fresh.path).read_text() == "x"
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith(".")) == []


def test_a_program_that_daemons_do_not_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "drupe-oci"
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(checks, "SYSTEM_PATH", str(tmp_path / "system"))
    with pytest.raises(Problem, match="drupe-oci, drupe-oci-wasm") as failure:
        checks.ours("drupe-oci", ["drupe-oci-wasm"])
    assert failure.value.mend.startswith(f"ln -s {program} /usr/local/bin/drupe-oci && ")
    with pytest.raises(Problem, match="is not installed"):
        checks.ours("drupe-none")


# -- files that are not what one expects ------------------------------------------------------------------------------

PLANS = [("containerd", "containerd 2.1.9"), ("dockerd", "Docker version 28.5.2"), ("podman", "podman version 4.3.1")]
MAKE = {"containerd": containerd.plan, "dockerd": docker.plan, "podman": podman.plan}


@pytest.mark.parametrize(("program", "says"), PLANS)
def test_what_is_no_file_is_refused(installed: Tools, tmp_path: Path, program: str, says: str) -> None:
    installed(program, says)
    (tmp_path / "directory").mkdir()
    (tmp_path / "long").write_bytes(b"#" * (5 << 20))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "deep").write_text("[" * 100_000 if program == "dockerd" else "a = " + "[" * 100_000)
    os.mkfifo(tmp_path / "fifo")
    for name in ("directory", "long", "bytes", "loop", "dangling", "deep", "fifo", "long/below"):
        with pytest.raises(DrupeError) as refused:
            MAKE[program](config=tmp_path / name, run_dir=tmp_path)
        assert name in str(refused.value), (name, refused.value)
    assert not (tmp_path / "nothing").exists()


def test_tables_of_other_types_are_no_tables(installed: Tools, tmp_path: Path) -> None:
    """What is wrong is containerd's and Docker's to say; nothing of it is lost."""
    installed("containerd", "containerd 2.1.9")
    installed("dockerd", "Docker version 28.5.2")
    path = tmp_path / "config.toml"
    path.write_text("version = 3\ngrpc = 7\ndisabled_plugins = 'x'\n")
    file = containerd.plan(config=path, run_dir=tmp_path).files[0]
    assert tomllib.loads(file.content)["grpc"] == 7
    path.write_text("version = 3\nplugins = 'x'\n")
    with pytest.raises(InvalidArgument, match="says already"):
        containerd.plan(config=path, run_dir=tmp_path)
    (tmp_path / "drupe.toml").write_text("containerd = 7\n")
    path.write_text("version = 3\n")
    with pytest.raises(InvalidArgument, match=r"drupe\.toml"):
        containerd.plan(config=path, run_dir=tmp_path)
    for hosts in (7, [7], "unix:///x", {}):
        (tmp_path / "daemon.json").write_text(json.dumps({"hosts": hosts, "runtimes": {"x": 7}}))
        settings = json.loads(docker.plan(config=tmp_path / "daemon.json", run_dir=tmp_path).files[0].content)
        assert settings["hosts"] == hosts and settings["runtimes"]["x"] == 7


def test_a_cri_that_is_off_is_said(installed: Tools, tmp_path: Path) -> None:
    """As the package containerd.io brings it."""
    installed("containerd", "containerd 1.7.24")
    (tmp_path / "config.toml").write_text('version = 2\ndisabled_plugins = ["cri"]\n')
    found = {probe.name: probe for probe in containerd.plan(config=tmp_path / "config.toml", run_dir=tmp_path).checks}
    assert found["CRI"].state != "ok" and "disabled_plugins" in found["CRI"].cause


def test_options_of_ours_in_daemon_json_stay(installed: Tools, tmp_path: Path) -> None:
    installed("dockerd", "Docker version 28.5.2")
    path = tmp_path / "daemon.json"
    mine = {"runtimeType": "io.containerd.drupe-vm.v2", "options": {"a": 1}}
    path.write_text(json.dumps({"runtimes": {"drupe-vm": mine, "drupe": {"path": "/old/drupe-oci"}}}))
    settings = json.loads(docker.plan(config=path, run_dir=tmp_path).files[0].content)["runtimes"]
    assert settings["drupe-vm"] == mine and settings["drupe"] == {"runtimeType": "io.containerd.drupe.v2"}


def test_containers_conf_that_cannot_be_added_to(installed: Tools, tmp_path: Path) -> None:
    installed("podman", "podman version 3.0.1")
    path = tmp_path / "containers.conf"
    for text, words in (("[engine\n", "not valid TOML"), ('[engine.runtimes]\nx = ["/x"]\n', "says already")):
        path.write_text(text)
        with pytest.raises(InvalidArgument, match=words):
            podman.plan(config=path, run_dir=tmp_path)


def test_line_ends_stay(tmp_path: Path, installed: Tools) -> None:
    installed("containerd", "containerd 2.1.9")
    path = tmp_path / "config.toml"
    path.write_bytes(b"version = 3\r\n# mine\r\n")
    file = containerd.plan(config=path, run_dir=tmp_path).files[0]
    plan.write(file)
    assert path.read_bytes().startswith(b"version = 3\r\n# mine\r\n")
    again = containerd.plan(config=path, run_dir=tmp_path).files[0]
    assert not again.changed


def test_what_others_write_meanwhile_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("theirs")
    for old in ("before", None):
        with pytest.raises(DrupeError, match="somebody else"):
            plan.write(plan.File(path=str(path), content="ours", old=old))
    assert path.read_text() == "theirs" and [each.name for each in tmp_path.iterdir()] == ["config.toml"]


def test_a_program_that_says_no_version(installed: Tools, tmp_path: Path) -> None:
    for program, _ in PLANS:
        installed(program, "no number here")
        with pytest.raises(DrupeError, match="version"):
            MAKE[program](run_dir=tmp_path)

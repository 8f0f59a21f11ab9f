"""`drupe-oci` by the names of kinds that have stand-ins: what a bundle asks for is carried out, or refused by name."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.oci.carried import refuses
from drupe.sandboxers.appkernel.able import ABLE as APPKERNEL
from drupe.sandboxers.gvisor.able import ABLE as GVISOR
from drupe.sandboxers.vm.able import ABLE as VM
from drupe.sandboxers.wasm.able import ABLE as WASM
from framework import bundles
from framework.bundles import Runtime, config, make_bundle
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.probes import each, needs_program
from framework.uncarried import LIMITS, LINUX, OPTIONS, USES, asked_of

pytestmark = pytest.mark.root
ABLE = {"gvisor": GVISOR, "appkernel": APPKERNEL, "vm": VM, "wasm": WASM}
FLAGS = (("--preserve-fds", "2"), ("--pidfd-socket", "/x"))
EXECS = ("process.scheduler*", "process.ioPriority*", "process.execCPUAffinity*")


def by_name(kind: str, daemon: Daemon, root: Path) -> Runtime:
    """Its refusals are answers here, not exceptions."""
    found = bundles.of_kind(kind, daemon, root)
    return Runtime(found.name, [bundles.COMMAND.with_name(f"drupe-oci-{kind}")], root=root, env=found.env)


@pytest.mark.parametrize("kind", ABLE)
def test_whatever_is_not_carried_out_is_refused_by_name(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    """Each refusal by the real program: one line that names field and kind, and nothing is left."""
    needs_program("crun")
    oci = by_name(kind, daemon, tmp_path / "state")
    silent = []
    for field, part, words in asked(kind):
        made = make_bundle(tmp_path / "bundle", config("true", cgroup=tmp_path.name[-20:], **{"hostname": "", **part}))
        done = oci("create", "--bundle", made, *words, "c1", check=False)
        line = done.stderr.splitlines()[0] if done.stderr else ""
        named = f"{field} is not carried out" in line or f"`$.{field}`" in line
        if done.returncode != 1 or not named:
            silent.append(f"{field}: {done.returncode} {done.stderr!r}")
        if done.returncode == 0:
            oci("delete", "--force", "c1")
    assert silent == []
    assert list((tmp_path / "state").glob("*/*")) == []
    assert oci("list", "--quiet").stdout == daemon.command("pod", "ls", "--quiet").stdout == ""


def asked(kind: str) -> Iterator[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """What a kind refuses: its name, the part of a config.json that asks for it, flags that do."""
    yield from ((asked_of(path), USES[path], ()) for path in USES if refuses(path, kind, ABLE[kind]))
    for name, resources in LIMITS.items():
        yield f"linux.resources.{name}", {"linux": LINUX | {"resources": resources}}, ()
    for mount, option, kinds in OPTIONS:
        if kind in kinds:
            yield f"mounts[].options {option} of /m", {"mounts": [mount]}, ()
    yield from ((words[0], {}, words) for words in FLAGS)


@pytest.fixture
def kernel(daemon: Daemon, tmp_path: Path) -> Iterator[Runtime]:
    """drupe-oci-appkernel; what a test leaves there is deleted."""
    needs_program("crun")
    runtime = by_name("appkernel", daemon, tmp_path / "state")
    yield runtime
    for line in runtime("list", "--quiet").stdout.split():
        runtime("delete", "--force", line)


def test_what_is_asked_of_a_process_holds_under_the_application_kernel(kernel: Runtime, tmp_path: Path) -> None:
    """Of the first one, and of those by a file."""
    user = {"uid": 7, "gid": 8, "umask": 0o27}
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/tmp", "type": "tmpfs", "source": "t", "options": ["mode=750", "uid=7", "gid=9", "rnoexec"]},
    ]
    shown = "umask; cat /proc/self/oom_score_adj; stat -c '%u %g %a' /tmp; grep -c 'tmp.*noexec' /proc/mounts"
    process = {"args": ["sh", "-c", f"{shown}; exec sleep 1000"], "user": user, "oomScoreAdj": 300}
    made = make_bundle(tmp_path / "bundle", config(cgroup=tmp_path.name[-20:], process=process, mounts=mounts))
    kernel.create(made, "c1", tmp_path / "out")
    kernel("start", "c1")
    further = {"cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", "umask; cat /proc/self/oom_score_adj"]}
    given = {**further, "user": {"uid": 0, "gid": 0, "umask": 0o77}, "oomScoreAdj": 5}
    (tmp_path / "process").write_text(json.dumps(given))
    assert kernel("exec", "--process", tmp_path / "process", "c1").stdout == "0077\n5\n"
    assert kernel("exec", "c1", "sh", "-c", "umask").stdout == "0027\n"
    assert (tmp_path / "out").read_text() == "0027\n300\n7 9 750\n1\n"
    for path in EXECS:
        (tmp_path / "process").write_text(json.dumps({**further, **USES[path]["process"]}))
        refused = kernel("exec", "--process", tmp_path / "process", "c1", check=False)
        assert refused.returncode == 255 and asked_of(path) in refused.stderr, refused.stderr


def test_memory_that_would_begin_with_files_is_refused(kernel: Runtime, tmp_path: Path) -> None:
    """Podman asks for it always: where there is nothing to copy, there is nothing to refuse."""
    mounts = [{"destination": "/tmp/m", "type": "tmpfs", "source": "t", "options": ["rw", "tmpcopyup"]}]
    made = make_bundle(tmp_path / "bundle", config("true", cgroup=tmp_path.name[-20:], mounts=mounts))
    assert kernel("run", "--bundle", made, "c1").stdout == ""
    (made / "rootfs/tmp/m").mkdir(exist_ok=True)
    (made / "rootfs/tmp/m/file").write_text("x")
    refused = kernel("create", "--bundle", made, "c1", check=False)
    assert refused.returncode == 1 and "tmpcopyup of /tmp/m is not carried out" in refused.stderr
    assert kernel("list", "--quiet").stdout == ""


def test_descriptors_of_the_caller_are_refused(kernel: Runtime, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", config("true", cgroup=tmp_path.name[-20:]))
    kernel.env["LISTEN_FDS"] = "1"
    refused = kernel("create", "--bundle", made, "c1", check=False)
    del kernel.env["LISTEN_FDS"]
    assert refused.returncode == 1 and "LISTEN_FDS" in refused.stderr
    assert kernel("list", "--quiet").stdout == ""


def test_a_path_is_no_name_for_systemd(kernel: Runtime, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", config("true", cgroup=tmp_path.name[-20:]))
    refused = kernel("--systemd-cgroup", "create", "--bundle", made, "c1", check=False)
    assert refused.returncode == 1 and "is not SLICE:PREFIX:NAME" in refused.stderr
    assert "$.linux.cgroupsPath" in refused.stderr and kernel("list", "--quiet").stdout == ""


def made_anew(oci: Runtime, bundle: Path) -> bool:
    oci("delete", "--force", "c1", check=False)
    with (bundle / "said").open("wb") as out:
        argv = [*oci.argv, "create", "--bundle", str(bundle), "c1"]
        return subprocess.run(argv, env=oci.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out).returncode == 0


def test_a_caller_that_is_killed_leaves_what_delete_removes(kernel: Runtime, tmp_path: Path) -> None:
    """Whenever that is: what it began goes on for a moment, and the id is free again after `delete --force`."""
    made = make_bundle(tmp_path / "bundle", config("sleep", "1000", cgroup=tmp_path.name[-20:]))
    for number in each(2, range(12)):
        argv = [*kernel.argv, "create", "--bundle", str(made), "c1"]
        with (tmp_path / "said").open("wb") as out:
            calling = subprocess.Popen(argv, env=kernel.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        with contextlib.suppress(subprocess.TimeoutExpired):
            calling.wait(number * 0.01)
        calling.kill()
        calling.wait()
        wait_until(functools.partial(made_anew, kernel, made), what="another one of that id")
        kernel("delete", "--force", "c1")
    assert kernel("list", "--quiet").stdout == "" and list((tmp_path / "state").glob("*/*")) == []


def test_what_its_program_cannot_delete_is_deleted(kernel: Runtime, tmp_path: Path) -> None:
    """A file of its state is lost: so it has been killed while it deleted."""
    made = make_bundle(tmp_path / "bundle", config("sleep", "1000", cgroup=tmp_path.name[-20:]))
    pid = kernel.create(made, "c1", tmp_path / "out")
    home = tmp_path / "state/appkernel-crun/c1"
    (home / "config.json").unlink()
    kernel("delete", "--force", "c1")
    assert not home.exists() and kernel("list", "--quiet").stdout == ""
    wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), what="the end of its stand-in")

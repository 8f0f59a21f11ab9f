"""The node's configuration over a real daemon: default kind, policy, broken files, and reading it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import drupe as api
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root

POLICY = """
sandbox = "auto"
[[policy]]
name = "tenants"
namespace = "tenant-*"
minimum = "kernel"
[[policy]]
name = "no-privileges"
minimum = "namespaces"
deny = ["devices"]
"""
PLAIN = ("--sandbox", "runc", "--network", "none")
RUN = ("run", "--rm", "--network", "none")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "drupe.toml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def strict(fresh_daemon: Daemon, config: Path) -> Iterator[Daemon]:
    """A daemon with the policy."""
    fresh_daemon.kill()
    fresh_daemon.start(env={"DRUPE_CONFIG": str(config)})
    yield fresh_daemon


REFUSED = (
    (("--namespace", "tenant-a", "--sandbox", "runc"), "policy rule 'tenants' asks for isolation 'kernel'"),
    (("--namespace", "tenant-a", "--annotation", "drupe.kind=runc"), "policy rule 'tenants' asks for isolation"),
    (("--privileged",), "policy rule 'no-privileges' asks for isolation 'namespaces' or stronger, and a pod with"),
    (("--net", "host"), "policy rule 'no-privileges'"),
    (("--net", "ns:/proc/self/ns/net"), "policy rule 'no-privileges'"),
    (("--pid", "host"), "policy rule 'no-privileges'"),
    (("--device", "/dev/null"), "policy rule 'no-privileges' forbids 'devices'"),
)


def test_the_policy_refuses_and_names_the_rule(strict: Daemon) -> None:
    """All by one daemon: none is harmed by what it refuses."""
    for flags, says in REFUSED:
        words = [*RUN, *flags]
        if "--net" in flags:
            del words[words.index("--network") : words.index("--network") + 2]
        done = strict.command(*words, "busybox", "true")
        assert done.returncode == 125, flags
        assert says in done.stderr and len(done.stderr.splitlines()) <= 2, done.stderr
        assert strict.command("pod", "ls", "-q").stdout == "", flags


def test_the_default_and_the_choice_are_shown(strict: Daemon) -> None:
    done = strict.command(*RUN, "--explain", "busybox", "true", check=True)
    lines = done.stderr.splitlines()
    assert "(isolation " in lines[0] and "the default of this node's configuration" in lines[0]
    assert any(line.startswith("passed over: vm: ") for line in lines)
    assert lines[-1] == "policy: no-privileges"
    chosen = json.loads(strict.command("system", "choose", "--json", "--network", "none", "busybox", check=True).stdout)
    assert chosen["asked"] == "auto" and chosen["by"] == "node" and chosen["passed_over"][0]["kind"] == "vm"
    strict.command("run", "-d", "--name", "kept", "--network", "none", "busybox", "sleep", "100", check=True)
    kept = json.loads(strict.command("inspect", "--type", "pod", "kept", check=True).stdout)[0]
    assert kept["choice"]["kind"] == kept["sandbox"] == chosen["kind"]
    assert "by=node" in strict.command("events", "--no-follow", "--since", "1m", check=True).stdout
    strict.command("run", "-d", "--name", "plain", *PLAIN, "busybox", "sleep", "100", check=True)
    done = strict.command("exec", "--privileged", "plain", "true")
    assert done.returncode == 125 and "policy rule 'no-privileges'" in done.stderr


def test_sighup_reads_it_again_and_a_broken_file_lets_nothing_new_in(strict: Daemon, config: Path) -> None:
    strict.command("run", "-d", "--name", "old", "--network", "none", "busybox", "sleep", "100", check=True)
    config.write_text("polcy = 3\n")
    os.kill(strict.pid, signal.SIGHUP)
    wait_until(lambda: "unknown key" in strict.log.read_text(), what="the daemon has read it")
    done = strict.command(*RUN, "busybox", "true")
    assert done.returncode == 125
    assert f"nothing new can be made: the node's configuration was changed and cannot be read: {config}" in done.stderr
    assert "unknown key 'polcy'" in done.stderr and "SIGHUP" in done.stderr
    strict.command("exec", "old", "true", check=True)
    strict.command("rm", "-f", "old", check=True)
    config.write_text('sandbox = "runc"\n')
    os.kill(strict.pid, signal.SIGHUP)
    wait_until(lambda: "read again" in strict.log.read_text(), what="the daemon has read it")
    strict.command(*RUN, "--privileged", "busybox", "true", check=True)


@pytest.mark.parametrize("how", ["environment", "flag"])
def test_a_daemon_does_not_start_with_a_broken_file(tmp_path: Path, config: Path, how: str) -> None:
    config.write_text("[[policy]]\nname = 'a'\nminimum = 'strong'\n")
    argv = [sys.executable, "-m", "drupe", "--root", str(tmp_path / "root"), "--run", str(tmp_path / "run"), "serve"]
    argv += ["--config", str(config)] if how == "flag" else []
    env = os.environ | ({"DRUPE_CONFIG": str(config)} if how == "environment" else {})
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 125
    assert f"{config}: policy 1: no level 'strong' (hint: one of: none, namespaces, module" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/keeper.pid").exists()


def test_started_on_demand_it_says_what_is_wrong(tmp_path: Path, config: Path) -> None:
    config.write_text("sandbx = 'runc'\n")
    named = {"DRUPE_ROOT": str(tmp_path / "root"), "DRUPE_RUN": str(tmp_path / "run"), "DRUPE_CONFIG": str(config)}
    done = subprocess.run(
        [Path(sys.executable).with_name("drupe"), "ps"],
        env=os.environ | named, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 125
    assert f"{config}: unknown key 'sandbx'" in done.stderr and "known keys: sandbox, kinds, policy" in done.stderr


def test_python_says_what_was_chosen(strict: Daemon) -> None:
    with api.Runtime(str(strict.run / "drupe.sock")) as runtime:
        with runtime.sandbox("busybox", network="none", isolation="auto") as sandbox:
            assert (sandbox.choice.asked, sandbox.choice.by, sandbox.choice.rules) == (
                "auto", "request", ["no-privileges"],
            )  # fmt: skip
            assert sandbox.kind == sandbox.status().sandbox == sandbox.choice.kind
            assert api.Sandbox.connect(sandbox.id, runtime=runtime).choice == sandbox.choice
        states = {kind.name: kind.state for kind in runtime.system.kinds()}
        assert states["runc"] == "ok"
        spec = api.PodSpec(sandbox="runc", namespace="tenant-a", network=api.NetworkSpec(mode="none"))
        with pytest.raises(api.PermissionDenied, match="policy rule 'tenants'"):
            runtime.system.choose(spec)

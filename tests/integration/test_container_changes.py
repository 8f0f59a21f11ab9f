"""What a container has changed of its image, an image made of that, and another name for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drupe.sandboxers.kinds import KINDS
from drupe.services.doctor import why_not
from framework import guests
from framework.bundles import KindRuntime, config, make_bundle, of_kind
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.probes import needs_program

pytestmark = pytest.mark.root
WORK = (
    "echo new > /etc/new; rm /etc/group; rm -r /home; mkdir /home; touch /home/me; echo more >> /etc/passwd;"
    " chmod 711 /srv; ln -s /etc/passwd /tmp/link; echo done; sleep 1000"
)
CHANGED = """\
C /etc
D /etc/group
A /etc/new
C /etc/passwd
C /home
A /home/me
C /srv
C /tmp
A /tmp/link
"""


@pytest.fixture(scope="module")
def image(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One more layer on busybox, so that there is what can be changed."""
    files = tmp_path_factory.mktemp("files")
    for name in ("home/old", "srv", "etc"):
        (files / name).mkdir(parents=True)
    (files / "home/old/file").touch()
    (files / "etc/group").write_text("root:x:0:\n")
    (files / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    daemon.command("build", "--base", "busybox", "--tag", "changed-base", "--env", "A=1", str(files), check=True)
    return "changed-base"


@pytest.mark.parametrize("kind", ["runc", "gvisor", "appkernel"])
def test_changes_become_an_image(daemon: Daemon, image: str, kind: str, tmp_path: Path) -> None:
    if cause := why_not(KINDS[kind], cache=tmp_path / "doctor.json", named=True):
        pytest.skip(f"{kind} cannot run here: {cause}")
    where = ("--sandbox", kind, "--network", "none")
    daemon.command("run", "-d", "--name", "c1", *where, image, "sh", "-c", WORK, check=True)
    wait_until(lambda: daemon.command("logs", "c1").stdout == "done\n", what="the changes")
    assert daemon.command("diff", "c1").stdout == CHANGED
    listed = json.loads(daemon.command("diff", "--json", "c1").stdout)
    assert listed[1] == {"kind": "D", "path": "/etc/group"}
    change = ("--change", 'CMD ["sh", "-c", "echo $A $B"]', "--change", "ENV B=2")
    made = daemon.command("commit", "-a", "me", "-m", "a message", *change, "c1", "committed:x", check=True)
    assert made.stdout.startswith("sha256:")
    assert daemon.command("ps", "--format", "{{.Status}}").stdout.startswith("Up")  # it goes on
    script = "cat /etc/new; ls /home; tail -n 1 /etc/passwd; readlink /tmp/link; stat -c %a /srv; ls /etc/group 2>&1"
    seen = daemon.command("run", "--rm", *where, "committed:x", "sh", "-c", script)
    assert seen.stdout.splitlines()[:5] == ["new", "me", "more", "/etc/passwd", "711"]
    assert "No such file" in seen.stdout
    assert daemon.command("run", "--rm", *where, "committed:x").stdout == "1 2\n"
    steps = json.loads(daemon.command("history", "--json", "committed:x").stdout)
    assert (steps[0]["comment"], steps[0]["created_by"]) == ("a message", f"sh -c {WORK}")
    assert len(steps) == 1 + len(json.loads(daemon.command("history", "--json", image).stdout))
    daemon.command("stop", "-t", "0", "c1", check=True)
    assert daemon.command("diff", "c1").stdout == CHANGED  # also of what has ended
    for words in (("rm", "--force", "c1"), ("rmi", "committed:x")):
        daemon.command(*words, check=True)


def test_what_has_no_layer_is_refused_by_name(open_daemon: Daemon) -> None:
    daemon = open_daemon
    made = ("create", "--name", "c1", "--userns", "auto", "--network", "none", "busybox", "true")
    daemon.command(*made, check=True)
    for verb in ("diff", "commit"):
        refused = daemon.command(verb, "c1")
        assert refused.returncode != 0 and "has no layer of changes" in refused.stderr and "ids" in refused.stderr
    daemon.command("rm", "c1", check=True)
    nobody = daemon.command("diff", "nobody")
    assert nobody.returncode != 0 and "no container 'nobody'" in nobody.stderr


def test_rename(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    for name in ("one", "two"):
        daemon.command("run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "1000", check=True)
    taken = daemon.command("rename", "one", "two")
    assert taken.returncode != 0 and "'two' exists" in taken.stderr
    same = daemon.command("rename", "one", "one")
    assert same.returncode != 0 and "has that name already" in same.stderr
    assert daemon.command("rename", "one", "no/name").returncode != 0
    daemon.command("rename", "one", "three", check=True)
    assert daemon.command("exec", "three", "echo", "in").stdout == "in\n"
    assert daemon.command("exec", "one", "true").returncode != 0
    assert sorted(daemon.command("ps", "--format", "{{.Names}}").stdout.split()) == ["three", "two"]
    assert sorted(daemon.command("pod", "ls", "--format", "{{.Name}}").stdout.split()) == ["three", "two"]
    daemon.command("run", "-d", "--name", "one", "--network", "none", "busybox", "sleep", "1000", check=True)
    daemon.kill()
    daemon.start()
    assert sorted(daemon.command("ps", "--format", "{{.Names}}").stdout.split()) == ["one", "three", "two"]


def test_a_renamed_container_is_found_on_its_network(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    daemon.command("run", "-d", "--name", "server", "busybox", "sleep", "1000", check=True)
    daemon.command("rename", "server", "other", check=True)
    asking = ("run", "--rm", "busybox", "sh", "-c")
    assert daemon.command(*asking, "ping -c 1 other >/dev/null && echo found").stdout == "found\n"
    assert daemon.command(*asking, "ping -c 1 -W 1 server >/dev/null 2>&1 || echo nobody").stdout == "nobody\n"


def test_all_owners(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Containers of other faces are shown to who asks."""
    needs_program("crun")
    pytest.importorskip("wasmtime")
    directory = tmp_path_factory.mktemp("owners")
    guests.make_rootfs(directory / "bundle/rootfs")
    made = make_bundle(directory / "bundle", config("sleep", "1000", cgroup="owners"))
    oci: KindRuntime = of_kind("wasm", daemon, directory / "state")
    oci.create(made, "c1", directory / "out")
    try:
        assert daemon.command("ps", "--all", "--quiet").stdout == ""
        shown = daemon.command("ps", "--all", "--all-owners").stdout.splitlines()
        assert shown[0].split()[-1] == "OWNER" and shown[1].split()[-1] == "oci" and len(shown) == 2
    finally:
        oci("delete", "--force", "c1")

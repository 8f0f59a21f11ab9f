"""Pods in machines as a user meets them: what two containers share, the network, and forks that are not alike."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = [pytest.mark.root]
BLOCK = ("--annotation", "drupe.vm.rootfs=block")


@pytest.fixture
def daemon(machine_daemon: Daemon) -> Iterator[Daemon]:
    yield machine_daemon
    machine_daemon.delete_pods()


def out(daemon: Daemon, *argv: str) -> str:
    said: str = daemon.command(*argv, check=True).stdout.strip()
    return said


def run(daemon: Daemon, name: str, *words: str, script: str = "exec sleep 1000") -> None:
    out(daemon, "run", "-d", "--name", name, "--sandbox", "vm", *words, "busybox", "sh", "-c", script)


def test_the_kernel_is_another(daemon: Daemon) -> None:
    release = out(daemon, "run", "--rm", "--sandbox", "vm", "--network", "none", "busybox", "uname", "-r")
    told = json.loads(out(daemon, "guest", "inspect", "default"))[0]
    assert release == told["release"]


def test_pods_on_the_bridge_and_a_published_port(daemon: Daemon) -> None:
    """A machine serves, another asks it by its address, and the host by the published port; both families."""
    script = "echo from a machine >/tmp/index.html; exec httpd -f -p 80 -h /tmp"
    run(daemon, "server", "-p", "8081:80", script=script)
    endpoint = json.loads(out(daemon, "inspect", "--type", "pod", "server"))[0]["endpoints"][0]
    ipv4, ipv6 = (endpoint[family].partition("/")[0] for family in ("ipv4", "ipv6"))
    for host in (ipv4, f"[{ipv6}]"):
        asking = f"for n in $(seq 50); do wget -qO- http://{host} && exit; sleep 0.2; done"
        assert out(daemon, "run", "--rm", "--sandbox", "vm", "busybox", "sh", "-c", asking) == "from a machine"
    wait_until(
        lambda: "from a machine" in daemon.on_host("busybox", "wget", "-qO-", "http://127.0.0.1:8081").stdout,
        what="the published port answers",
    )


WHO = """test -e /tmp/begun && touch /tmp/go || exit; until [ -e /tmp/drawn ]; do sleep 0.1; done; hostname
cat /sys/class/net/eth0/address /proc/sys/kernel/random/uuid /tmp/drawn; ip -4 -o addr show eth0 | awk '{print $4}'"""
DRAWS = """touch /tmp/begun; until [ -e /tmp/go ]; do sleep 0.1; done
head -c 16 /dev/urandom | od -An -tx1 >/tmp/x; mv /tmp/x /tmp/drawn; sleep 1000"""


@pytest.mark.timeout(300)
def test_forks_are_not_alike(daemon: Daemon) -> None:
    """What runs goes on in each, and each is another machine."""
    run(daemon, "origin", *BLOCK, script=DRAWS)
    for name in ("one", "two"):
        out(daemon, "fork", "--name", name, "origin")
    # names and addresses; random numbers of a new process, and of one that was there before the fork
    told = [out(daemon, "exec", name, "sh", "-c", WHO).splitlines() for name in ("origin", "one", "two")]
    assert len(told[0]) == 5
    for same in zip(*told, strict=True):
        assert len(set(same)) == 3, same


def test_a_root_by_block_has_what_was_copied_in_before(daemon: Daemon, tmp_path: Path) -> None:
    """The image's disk, which every pod of the image shares, and a small one over it."""
    (tmp_path / "note").write_text("copied in\n")
    out(daemon, "create", "--name", "noted", "--sandbox", "vm", "--network", "none", *BLOCK, "busybox", "cat", "/note")
    out(daemon, "cp", str(tmp_path / "note"), "noted:/note")
    out(daemon, "start", "noted")
    out(daemon, "wait", "noted")
    assert out(daemon, "logs", "noted") == "copied in"
    files = list((daemon.root / "images/erofs").iterdir())
    assert len(files) == 1
    daemon.delete_pods()
    os.utime(files[0], (0, 0))
    out(daemon, "image", "prune", "--force")
    assert not files[0].exists()


FILE_RIGHTS = {0, 1, 3, 4, 6, 7, 31}  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, SETFCAP (capabilities(7))


def test_what_the_programs_of_a_machine_may_do(daemon: Daemon, tmp_path: Path) -> None:
    """The monitor: a user of its own and nothing else. virtiofsd: to hand out files of any owner, of one directory, and
    no capability but in a user namespace of its own, in which ids are what they are, so that the files' owners are.
    Both are where nothing of the host is, in the pod's cgroup, behind a filter. Device nodes of the host are none."""
    os.mknod(tmp_path / "node", 0o600 | stat.S_IFBLK, os.makedev(254, 0))  # the guest's first disk has such a number
    refused = daemon.command("run", "--rm", "--sandbox", "vm", "-v", f"{tmp_path / 'node'}:/node", "busybox", "true")
    assert refused.returncode != 0 and "is a device of the host" in refused.stderr
    run(daemon, "one", "-v", f"{tmp_path}:/given", "-v", "/dev/null:/sink")
    assert out(daemon, "exec", "one", "sh", "-c", "echo x >/sink; cat /sink; echo $?") == "0"
    assert daemon.command("exec", "one", "dd", "if=/given/node", "count=1").returncode != 0
    pod = json.loads(out(daemon, "inspect", "--type", "pod", "one"))[0]
    home = daemon.run / "pods" / pod["id"] / "vm"
    monitor, waits = (int((home / f"{name}.pid").read_text()) for name in ("vmm", "virtiofsd"))
    serves = int(Path(f"/proc/{waits}/task/{waits}/children").read_text())
    told = {pid: status(pid) for pid in (monitor, waits, serves)}
    uid = told[monitor]["Uid"].split()
    assert len(set(uid)) == 1 and int(uid[0]) > 1_000_000_000 and told[monitor]["Gid"].split() == uid
    assert rights(told[monitor]) == rights(told[waits]) == set()
    assert rights(told[serves]) <= FILE_RIGHTS
    for pid in (monitor, serves):
        assert (told[pid]["NoNewPrivs"], told[pid]["Seccomp"]) == ("1", "2")
        assert not Path(f"/proc/{pid}/root/etc").exists()
        assert pod["id"] in Path(f"/proc/{pid}/cgroup").read_text()
    assert not list(Path(f"/proc/{monitor}/root").iterdir())
    for space in ("mnt", "net", "pid", "user"):
        assert Path(f"/proc/{serves}/ns/{space}").readlink() != Path(f"/proc/self/ns/{space}").readlink()
    for ids in ("uid_map", "gid_map"):
        assert Path(f"/proc/{serves}/{ids}").read_text().split() == ["0", "0", str(2**32 - 1)]
    out(daemon, "exec", "one", "sh", "-c", "echo x >/given/f; chown 1000660000:3000000000 /given/f")
    assert ((tmp_path / "f").stat().st_uid, (tmp_path / "f").stat().st_gid) == (1000660000, 3000000000)
    refused = daemon.command("exec", "one", "mknod", "/dev-node", "b", "8", "0")
    assert refused.returncode, "a device node of the host's"


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def rights(told: dict[str, str]) -> set[int]:
    """Capabilities that it has or could get."""
    bits = int(told["CapEff"], 16) | int(told["CapPrm"], 16) | int(told["CapInh"], 16) | int(told["CapAmb"], 16)
    return {bit for bit in range(64) if bits >> bit & 1}


def test_a_template_has_loaded_what_its_pods_need(daemon: Daemon) -> None:
    """A pod without a network has no use for the driver: it comes with the template."""
    run(daemon, "bare", "--network", "none")
    assert json.loads(out(daemon, "inspect", "--type", "pod", "bare"))[0]["timings_ms"].get("start restore")
    loaded = {line.split()[0] for line in out(daemon, "exec", "bare", "cat", "/proc/modules").splitlines()}
    assert {"virtiofs", "virtio_net", "overlay"} <= loaded


def test_a_template_keeps_the_place_of_a_share(daemon: Daemon) -> None:
    """Its device has no driver while the machine is saved, and another in its place is found without ACPI, which a
    guest hears again afterwards; a pod without a share has nothing there, and what is plugged in comes elsewhere."""
    every = "for one in *; do echo $(cat $one/device) $([ -e $one/driver ] && echo driven); done"
    look = f"cat {EVENTS}; cd /sys/bus/pci/devices; {every}"
    run(daemon, "shared", "--network", "none", "--privileged")
    run(daemon, "apart", "--privileged", *BLOCK)
    shared, apart = (out(daemon, "exec", pod, "sh", "-c", look) for pod in ("shared", "apart"))
    assert "enabled" in shared.split() and "enabled" in apart.split()
    assert f"{SHARE} driven" in shared
    assert SHARE in apart and f"{SHARE} driven" not in apart
    out(daemon, "network", "create", "later")
    out(daemon, "network", "connect", "later", "apart")
    awaits(daemon, "apart", "eth1", there=True)
    out(daemon, "network", "disconnect", "later", "apart")
    awaits(daemon, "apart", "eth1", there=False)
    daemon.delete_pods()
    out(daemon, "network", "rm", "later")


def awaits(daemon: Daemon, pod: str, interface: str, *, there: bool) -> None:
    def settled() -> bool:
        return (interface in out(daemon, "exec", pod, "ls", "/sys/class/net").split()) is there

    wait_until(settled, what=f"{interface} is there: {there}", timeout_s=60)


def test_what_a_template_does_not_need_is_a_hole(daemon: Daemon) -> None:
    """Free memory is clear: of 256 MiB and the guest's own part less than a third is kept and copied."""
    memory = next(daemon.root.glob("vm/templates/*/memory")).stat()
    assert memory.st_blocks * 512 < memory.st_size // 3


def test_machines_with_a_share_have_their_kernels_code_from_the_template(daemon: Daemon) -> None:
    """Their memory is a copy of their own, but for what only their processors read."""
    (template,) = daemon.root.glob("vm/templates/*")
    begin, end = (int(word) for word in (template / "code").read_text().split("-"))
    assert 4 << 20 < end - begin < 64 << 20
    run(daemon, "shares", "--network", "none")
    (home,) = daemon.run.glob("pods/*/vm")
    mappings = Path(f"/proc/{int((home / 'vmm.pid').read_text())}/maps").read_text().splitlines()
    (code,) = (line.split() for line in mappings if line.endswith(f"{template}/memory"))
    first, last = (int(word, 16) for word in code[0].split("-"))
    assert (code[1], int(code[2], 16), last - first) == ("rw-p", begin, end - begin)
    assert out(daemon, "exec", "shares", "sh", "-c", "seq 2000 | sort -n | tail -n 1") == "2000"


SHARE, EVENTS = "0x105a", "/sys/firmware/acpi/interrupts/gpe01"  # virtio-fs of the virtio specification


def test_what_a_guest_frees_stays_in_its_template(daemon: Daemon) -> None:
    """Its own copy of that memory goes back to the host; the file is that of all others too."""
    memory = next(daemon.root.glob("vm/templates/*/memory"))
    before = memory.stat()
    run(daemon, "frees", "--network", "none", "--privileged", *BLOCK)
    (home,) = daemon.run.glob("pods/*/vm")
    monitor = int((home / "vmm.pid").read_text())
    out(daemon, "exec", "frees", "sh", "-c", "head -c 60000000 /dev/zero | tail -n 1 >/dev/null")
    most = own_kib(monitor, MEMORY)
    out(daemon, "exec", "frees", "sh", "-c", "echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory")
    wait_until(lambda: own_kib(monitor, MEMORY) < most - 20_000, what="it is given back", timeout_s=60)
    after = memory.stat()
    assert (after.st_mtime_ns, after.st_blocks) == (before.st_mtime_ns, before.st_blocks)
    assert out(daemon, "exec", "frees", "echo", "well") == "well"


def test_a_machine_that_is_quiet_keeps_little_translated_code(daemon: Daemon) -> None:
    """What a start ran once is given back (30 MB), and what is needed again is translated again."""
    run(daemon, "quiet", "--network", "none", *BLOCK)
    (home,) = daemon.run.glob("pods/*/vm")
    monitor = int((home / "vmm.pid").read_text())
    wait_until(lambda: own_kib(monitor, CODE) < 16_384, what="it is given back", timeout_s=60)
    assert out(daemon, "exec", "quiet", "echo", "well") == "well"


MEMORY, CODE = r" rw-p .*/memory$", r" rwxp \S+ 00:00 0 *$"


def own_kib(pid: int, kind: str) -> int:
    """Memory that a process has for itself, of mappings whose line in proc_pid_smaps(5) has `kind`."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    mappings = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text)
    chosen = (one for one in mappings if one and re.search(kind, one.splitlines()[0]))
    return sum(int(found[1]) for one in chosen if (found := re.search(r"(?m)^Anonymous: +(\d+)", one)))


def test_templates_of_before_are_pruned(daemon: Daemon) -> None:
    """What nobody starts from goes, and what pods start from stays. (The last test here: it takes the template.)"""
    (kept,) = out(daemon, "template", "ls", "--quiet").splitlines()
    assert kept not in out(daemon, "template", "prune", "--force")
    about = daemon.root / "vm/templates" / kept / "template.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"basis": "of before"}))
    assert kept in out(daemon, "system", "prune", "--force")
    assert out(daemon, "template", "ls", "--quiet") == ""

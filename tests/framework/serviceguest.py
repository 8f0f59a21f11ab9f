"""A guest image whose first process is not the agent: a shell script that mounts what any init mounts, and starts the
agent as a service in a cgroup of its own, as packaging/drupe-agent.service has systemd do it.

Who may set the guest's host name can have that agent stopped or killed: what no container can do to a first process.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from drupe.guest.tree import Tree, archive
from framework import machines

FREEZE, KILL = "freeze-the-agent", "kill-the-agent"
_FIRST = """#!/usr/bin/sh
export PATH=/usr/bin:/sbin
busybox mount -o bind / /root && cd /root && busybox mount -o move . / && exec busybox chroot . /usr/bin/sh /second
"""
_SECOND = f"""
m() {{ busybox mkdir -p $3 && busybox mount -t $1 $2 $3; }}
m proc proc /proc; m sysfs sysfs /sys; m devtmpfs dev /dev; m devpts pts /dev/pts; m tmpfs shm /dev/shm
m mqueue queues /dev/mqueue; m tmpfs run /run; m tmpfs tmp /tmp; m tmpfs mnt /mnt; m cgroup2 cgroups /sys/fs/cgroup
echo /sbin/modprobe >/proc/sys/kernel/modprobe
for again in 1 2; do
    for alias in /sys/bus/*/devices/*/modalias; do /sbin/modprobe "$(busybox cat $alias)"; done
done
busybox ip link set lo up
own=/sys/fs/cgroup/system.slice/drupe-agent.service
busybox mkdir -p $own
for above in /sys/fs/cgroup /sys/fs/cgroup/system.slice; do
    echo "+cpu +memory +pids +io" >$above/cgroup.subtree_control
done
sh -c 'echo 0 >$0/cgroup.procs; exec /sbin/drupe-agent --service --machine' $own &
agent=$!
trap 'busybox poweroff -f' USR2
while :; do
    case "$(busybox cat /proc/sys/kernel/hostname)" in
    {FREEZE}) kill -STOP $agent ;;
    {KILL}) kill -9 $agent ;;
    esac
    busybox sleep 0.2
done
"""


def make_root(root: Path) -> None:
    """Let a runtime's root have it as the image that pods boot."""
    good = machines.built() / "guests/default"
    guests = root / "guests"
    digest = hashlib.sha256(_tree_of_init() + good.resolve().name.encode()).hexdigest()
    (guests / digest).mkdir(parents=True)
    (guests / "default").symlink_to(digest)
    for name in ("guest.json", "kernel"):
        (guests / digest / name).symlink_to(good.resolve() / name)
    (guests / digest / "initrd").write_bytes((good / "initrd").read_bytes() + _tree_of_init())


def _tree_of_init() -> bytes:
    """What the kernel unpacks over the image's own root."""
    busybox = shutil.which("busybox")
    assert busybox
    tree = Tree()
    tree.copy(Path(busybox), "usr/bin/busybox", 0o755)
    for applet in ("sh", "poweroff"):
        tree.symlink(f"usr/bin/{applet}", "busybox")
    tree.file("init", _FIRST.encode(), 0o755)
    tree.file("second", _SECOND.encode())
    return archive(tree)

"""Hostile programs in a pod under the application kernel: what they get is what they get in a container of runc's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.appkernels import PYTHON, leaves_nothing
from framework.daemon import Daemon
from framework.probes import needs_path

pytestmark = pytest.mark.root
DEBIAN = tuple(word for name in ("usr", "lib", "lib64") for word in ("-v", f"/{name}:/{name}:ro"))

# HOST_PID: a process of the host's. SECRET: a directory of the host's, with a file in it, that the pod was not given.
ATTEMPTS = """
import ctypes, errno, os, socket, stat, struct
libc, up = ctypes.CDLL(None, use_errno=True), "../" * 30
def of(call, *args, **more):
    try: got = call(*args, **more)
    except OSError as error: return errno.errorcode[error.errno]
    return "done"
def raw(number, *args):
    ctypes.set_errno(0); got = libc.syscall(number, *args)
    return errno.errorcode[ctypes.get_errno()] if got < 0 else "done"
def say(what, *got): print(what, *got, flush=True)
def read(path): return of(lambda: open(path, "rb").read(1))
def write(path):
    def act():
        fd = os.open(path, os.O_WRONLY)
        try: os.write(fd, b"1")
        finally: os.close(fd)
    return of(act)
def in_child(act):
    pid = os.fork()
    if pid == 0:
        act(); os._exit(0)
    os.waitpid(pid, 0)
NOT_THERE = ("ENOSYS", "ESRCH", "EINVAL", "EPERM")

def paths():
    say("up", os.path.realpath(up), of(os.stat, up + "SECRET"), of(os.stat, "/data/" + up + "SECRET"))
    os.symlink("/SECRET/file", "/data/link"); os.symlink(up + "SECRET/file", "/data/relative")
    say("links", read("/data/link"), read("/data/relative"))
    say("roots", *[read(f"/proc/{who}/root/SECRET/file") for who in ("self", "1")])
    say("cwd", read("/proc/1/cwd/" + up + "SECRET/file"), of(os.stat, "/proc/self/fd/0/" + up))
def jail():
    inner, deep = os.open("/", os.O_RDONLY), os.open("/data", os.O_RDONLY)
    os.mkdir("/own/jail"); os.chroot("/own/jail"); os.fchdir(deep)
    for _ in range(40): os.chdir("..")
    say("jail", of(os.stat, "SECRET"), os.path.samestat(os.stat("."), os.fstat(inner)))
def moved():
    os.makedirs("/data/a/b"); at = os.open("/data/a/b", os.O_RDONLY); os.rename("/data/a/b", "/data/moved")
    os.fchdir(at)
    say("moved", of(os.stat, up + "SECRET"), read(up + "SECRET/file")); os.chdir("/")
def devices():
    for name, kind, device in (("disk", stat.S_IFBLK, (8, 0)), ("mem", stat.S_IFCHR, (1, 1))):
        of(os.mknod, "/own/" + name, kind | 0o600, os.makedev(*device))
        say("device", name, read("/own/" + name) in ("EPERM", "EACCES", "ENXIO", "ENODEV", "ENOENT"))
    handle = ctypes.create_string_buffer(struct.pack("IiQ", 8, 1, 2), 200)
    say("handle", raw(304, os.open("/", os.O_RDONLY), handle, 0))
def mounts():
    say("mounts", raw(165, b"/dev/sda", b"/own", b"ext4", 0, 0), raw(165, b"proc", b"/own", b"proc", 0, 0))
    say("roots", raw(155, b"/", b"/own"), raw(166, b"/data", 2), raw(272, 0x20000), raw(272, 0x10000000))
    say("namespaces", raw(308, 0, 0), *[raw(56, flag | 17, 0, 0, 0, 0) for flag in (0x20000, 0x4000000, 0x40000000)])
def machine():
    said = ("EROFS", "EACCES", "EPERM", "ENOENT", "EIO", "EINVAL")
    for path in ("kernel/core_pattern", "kernel/modprobe", "vm/drop_caches"):
        say(path, write("/proc/sys/" + path) in said)
    for path in ("/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/sys/power/state"): say(path, write(path) in said)
    for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list"):
        say(path, read(path) != "done" or open(path, "rb").read(9) == b"")
    say("modules", raw(175, 0, 0, 0), raw(246, 0, 0, 0, 0), raw(169, 0xfee1dead, 672274793, 0x1234567, 0))
    say("observe", raw(321, 0, 0, 0), raw(298, 0, 0, -1, -1, 0), raw(425, 8, ctypes.create_string_buffer(120)))
    say("system", raw(227, 0, ctypes.create_string_buffer(16)), raw(172, 3), raw(163, b"/own/x"), raw(167, b"/", 0))
def others():
    byte = ctypes.create_string_buffer(1)
    room = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(byte), 1))
    say("host", of(os.kill, HOST_PID, 9), of(os.stat, "/proc/HOST_PID"), raw(434, HOST_PID, 0))
    say("priority", raw(141, 0, HOST_PID, 5))
    say("traced", raw(101, 16, HOST_PID, 0, 0) in NOT_THERE, raw(310, HOST_PID, room, 1, room, 1, 0) in NOT_THERE)
    say("init", of(os.kill, 1, 9), of(os.kill, 1, 15))
def unprivileged():
    os.setgid(77); os.setuid(77)
    say("looked", *[read("/proc/1/" + name) for name in ("environ", "maps", "auxv")], of(os.listdir, "/proc/1/fd"))
    say("links", *[of(os.readlink, "/proc/1/" + name) for name in ("exe", "root", "cwd")])
    say("below", read("/proc/1/root/etc/group"))
    say("memory", of(os.open, "/proc/1/mem", os.O_RDWR) in ("EACCES", "ENOENT"), write("/proc/1/oom_score_adj"))
    say("rights", of(os.kill, 1, 9), of(os.setuid, 0), of(os.chroot, "/own"), of(os.chmod, "/own", 0o777))
    say("files", read("/own/mine"), of(os.chown, "/own", 77, 77), raw(438, 0, 0, 0))
def read_only():
    fd, path = os.open("/ro/file", os.O_RDONLY), os.open("/ro/file", os.O_PATH)
    again = f"/proc/self/fd/{fd}"
    say("again", of(os.open, again, os.O_RDWR), of(os.chmod, again, 0o777), of(os.truncate, again, 0))
    say("changed", of(os.unlink, "/ro/file"), of(os.rename, "/ro/file", "/data/x"), of(os.link, "/ro/file", "/data/x"))
    say("by fd", of(os.fchmod, fd, 0o777), of(os.ftruncate, fd, 0), of(os.read, path, 1), of(os.fchmod, path, 0o777))
    say("by place", of(os.open, f"/proc/self/fd/{path}", os.O_WRONLY), read(f"/proc/self/fd/{path}"))
    say("program", *[write(name) in ("ETXTBSY", "EROFS", "EACCES") for name in ("/proc/self/exe", "/usr/bin/env")])
    a, b = socket.socketpair(); socket.send_fds(a, [b"x"], [fd, os.open("/data", os.O_RDONLY)])
    (file, directory), = [socket.recv_fds(b, 9, 9)[1]]
    say("sent", of(os.write, file, b"x"), of(os.stat, up + "SECRET", dir_fd=directory))
os.close(os.open("/own/mine", os.O_CREAT | os.O_RDWR, 0o600))
for attempt in (paths, jail, moved, devices, mounts, machine, others, unprivileged, read_only): in_child(attempt)
"""


@pytest.fixture
def pods(daemon: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    with leaves_nothing(daemon, tmp_path):
        yield daemon


def attempted(pods: Daemon, directory: Path, kind: str, host_pid: int, secret: Path) -> str:
    """What the program says of all its attempts."""
    for name in ("data", "ro"):
        (directory / name).mkdir(parents=True)
    (directory / "ro/file").write_text("as it was")
    program = ATTEMPTS.replace("HOST_PID", str(host_pid)).replace("/SECRET", str(secret))
    (directory / "program.py").write_text(program.replace("SECRET", str(secret).lstrip("/")))
    given = ("-v", f"{directory}/data:/data", "-v", f"{directory}/ro:/ro:ro", "-v", f"{directory}/program.py:/p.py:ro")
    words = ("run", "--rm", "--sandbox", kind, "--network", "none", *DEBIAN, *given, "--tmpfs", "/own", "busybox")
    said = pods.command(*words, PYTHON, "-I", "/p.py", check=True).stdout
    assert (directory / "ro/file").read_text() == "as it was"
    return said


def test_each_attempt_gets_what_it_gets_under_runc(pods: Daemon, tmp_path: Path) -> None:
    """Paths and links out, /proc, devices, mounts, signals and traces, descriptors, what others have."""
    needs_path(PYTHON)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("of the host")
    with subprocess.Popen(["sleep", "1000"]) as victim:
        try:
            said = [attempted(pods, tmp_path / kind, kind, victim.pid, secret) for kind in ("runc", "appkernel")]
            assert said[1].splitlines() == said[0].splitlines()
            assert "False" not in said[0] and said[0].splitlines()[-1].startswith("sent")
            assert victim.poll() is None
        finally:
            victim.kill()

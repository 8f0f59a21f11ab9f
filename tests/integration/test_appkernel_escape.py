"""Attacks on the application kernel's boundary: each fails, and the same probe works where it may."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from framework.appkernels import JUMP, KERNEL, memory_cgroup, run, skip_without_platform, small_image
from framework.taken_over import Captive, Killed

pytestmark = pytest.mark.root
TIMEOUT_S = 60
LONG = bool(os.environ.get("DRUPE_TEST_FULL"))
ENOENT, EPERM, EACCES, EXDEV = -2, -1, -13, -18
FIRST_UID = 1_900_000_000


@pytest.fixture(scope="module", autouse=True)
def _platform() -> None:
    skip_without_platform()


@contextmanager
def idle(*words: str) -> Iterator[int]:
    """A kernel whose pod sleeps; its process."""
    argv = [KERNEL, "run", "--root", "/", *words, "--", "/bin/sh", "-c", "echo up; read line"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None and running.stdout.readline() == "up\n"
            yield running.pid
        finally:
            running.kill()


def status_of(pid: int) -> dict[str, str]:
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# -- what the processes are -----------------------------------------------------------------------------------------


def test_the_kernels_process_is_nobody_and_nowhere() -> None:
    """A user of its own, no rights but to read the root's files, an empty root, its own namespaces."""
    with idle() as pid:
        status = status_of(pid)
        uid = int(status["Uid"].split()[0])
        assert uid >= FIRST_UID and set(status["Uid"].split() + status["Gid"].split()) == {str(uid)}
        assert (status["CapPrm"], status["CapEff"]) == (f"{1 << 2:016x}",) * 2  # CAP_DAC_READ_SEARCH
        assert {status[key] for key in ("CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
        assert list(Path(f"/proc/{pid}/root").iterdir()) == [] and list(Path("/").iterdir()) != []
        for kind in ("mnt", "ipc", "uts", "net", "cgroup", "pid_for_children"):
            assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink(), kind
        assert Path(f"/proc/{pid}/maps").stat().st_uid == 0, "it can be dumped"


def test_without_directories_of_the_host_it_has_no_right_at_all(tmp_path: Path) -> None:
    """A root from an image: no capability."""
    with idle_image(tmp_path) as pid:
        assert {status_of(pid)[key] for key in ("CapPrm", "CapEff", "CapBnd")} == {"0" * 16}


@contextmanager
def idle_image(tmp_path: Path) -> Iterator[int]:
    argv = [
        KERNEL,
        "run",
        "--root",
        small_image(tmp_path),
        "--",
        "/busybox",
        "sh",
        "-c",
        "echo up; read line",
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None and running.stdout.readline() == "up\n"
            yield running.pid
        finally:
            running.kill()


def test_stubs_are_somebody_else_and_see_nobody() -> None:
    """Another user in a user and a PID namespace of theirs: they could not name the kernel's process, nor signal it."""
    with idle() as pid:
        kernel, stubs = (
            status_of(pid),
            [child for child in descendants(pid) if status_of(child)["Name"] == "drupe-guest"],
        )
        assert stubs
        for stub in stubs:
            status = status_of(stub)
            assert int(status["Uid"].split()[0]) == int(kernel["Uid"].split()[0]) + 1
            assert {status[key] for key in ("CapPrm", "CapEff", "CapBnd")} == {"0" * 16}
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2") and len(status["NSpid"].split()) > 1
            assert Path(f"/proc/{stub}/ns/user").readlink() != Path(f"/proc/{pid}/ns/user").readlink()
            assert list(Path(f"/proc/{stub}/root").iterdir()) == []


def descendants(pid: int) -> list[int]:
    below = children_of(pid)
    return below + [more for child in below for more in descendants(child)]


def test_nothing_outlives_the_kernel() -> None:
    """Killed, it takes stubs and holder along."""
    with idle() as pid:
        family = descendants(pid)
        assert len(family) >= 3
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{member}").exists() for member in family) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [member for member in family if Path(f"/proc/{member}").exists()] == []


def test_who_is_not_root_is_refused(tmp_path: Path) -> None:
    """Never unconfined without a word; --no-confine says it aloud."""
    argv = ["setpriv", "--reuid", "1000", "--clear-groups", str(KERNEL), "run", "--root", "/"]
    done = subprocess.run([*argv, "--", "/bin/true"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 1 and "cannot be confined" in done.stderr and "root" in done.stderr
    argv = [str(KERNEL), "run", "--root", "/", "--no-confine", "--", "/bin/true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0 and "NOT CONFINED" in done.stderr


# -- a kernel that was taken over --------------------------------------------------------------------------------------


def how(flags: int, resolve: int = 0) -> bytes:
    """struct open_how."""
    return b"".join(word.to_bytes(8, "little") for word in (flags, 0, resolve))


def directory_of(pid: int, path: Path) -> int:
    """The descriptor by which a process holds this directory, for reading."""
    wanted = path.stat()
    for held in Path(f"/proc/{pid}/fd").iterdir():
        seen = held.stat()
        flags = int(Path(f"/proc/{pid}/fdinfo/{held.name}").read_text().split("flags:")[1].split()[0], 8)
        if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino) and not flags & os.O_PATH:
            return int(held.name)
    raise AssertionError(f"{path} is not held")


def test_a_taken_kernel_reaches_shared_directories_only(tmp_path: Path) -> None:
    """By its own hand it opens, changes and gives away what is shared, and nothing above or beside it."""
    share = tmp_path / "share"
    share.mkdir()
    (share / "in").write_text("in")
    (tmp_path / "out").write_text("out")
    OPENAT2, FCHOWNAT, NEWFSTATAT, UNLINKAT, READLINKAT, MKDIRAT = 437, 260, 262, 263, 267, 258
    with idle("--bind", f"{share}:/mnt") as pid, Captive(pid) as kernel:
        fd = directory_of(pid, share)
        assert kernel.call(OPENAT2, fd, b"in\0", how(os.O_RDWR), 24) > 2
        assert kernel.call(FCHOWNAT, fd, b"in\0", 1234, 1234, 0) == 0
        for path in (
            b"../out\0",
            b"../../../../../../../etc/passwd\0",
            b"/etc/passwd\0",
            bytes(str(tmp_path / "out"), "ascii") + b"\0",
        ):
            assert kernel.call(OPENAT2, fd, path, how(os.O_RDONLY), 24) in (ENOENT, EACCES), path
            assert kernel.call(FCHOWNAT, fd, path, 1234, 1234, 0) in (ENOENT, EACCES, EPERM), path
            assert kernel.call(NEWFSTATAT, fd, path, b"\0" * 144, 0) == ENOENT, path
            assert kernel.call(UNLINKAT, fd, path, 0) in (ENOENT, EACCES, EPERM, -30), path
        assert kernel.call(MKDIRAT, -100, b"/x\0", 0o777) in (-30, EACCES)
        assert kernel.call(READLINKAT, -100, b"/proc/1/root\0", b"\0" * 64, 64) == ENOENT
    assert ((share / "in").stat().st_uid, (tmp_path / "out").stat().st_uid) == (1234, 0)


def test_a_taken_kernel_reaches_no_process_of_the_host() -> None:
    """Neither by signal nor in memory; its stubs it does."""
    PIDFD_OPEN, PIDFD_SEND, TGKILL, VM_READ = 434, 424, 234, 310
    sleeping = subprocess.Popen(["sleep", "100"], start_new_session=True)
    try:
        with idle() as pid:
            stub = next(child for child in descendants(pid) if status_of(child)["Name"] == "drupe-guest")
            somewhere = int(Path(f"/proc/{sleeping.pid}/maps").read_text().split("-")[0], 16)
            at_stub = int(Path(f"/proc/{stub}/maps").read_text().split("-")[0], 16)
            with Captive(pid) as kernel:
                vector = lambda at: at.to_bytes(8, "little") + (16).to_bytes(8, "little")  # noqa: E731
                local = vector(kernel._scratch + 1024)
                assert kernel.call(VM_READ, stub, local, 1, vector(at_stub), 1, 0) in (16, -14)
                assert kernel.call(VM_READ, sleeping.pid, local, 1, vector(somewhere), 1, 0) == EPERM
                assert kernel.call(TGKILL, sleeping.pid, sleeping.pid, signal.SIGKILL) == EPERM
                fd = kernel.call(PIDFD_OPEN, sleeping.pid, 0)
                assert fd > 0 and kernel.call(PIDFD_SEND, fd, signal.SIGKILL, 0, 0) == EPERM
        assert sleeping.poll() is None
    finally:
        sleeping.kill()
        sleeping.wait()


def test_a_taken_kernel_changes_nothing_of_the_hosts_proc(tmp_path: Path) -> None:
    """It reads there by descriptors of its own, with rights on files of any owner: these are read-only all the same."""
    FCHMOD, FCHOWNAT, AT_EMPTY_PATH, EROFS = 91, 260, 0x1000, -30
    with idle("--bind", f"{empty(tmp_path)}:/mnt", "--network") as pid, Captive(pid) as kernel:
        shared = directory_of(pid, tmp_path / "empty")
        assert (
            kernel.call(FCHMOD, shared, 0o755) == 0 and kernel.call(FCHOWNAT, shared, b"\0", 0, 0, AT_EMPTY_PATH) == 0
        )
        for path in (Path("/proc/meminfo"), Path(f"/proc/{pid}/net")):
            fd, mode = directory_of(pid, path), path.stat().st_mode & 0o777
            assert kernel.call(FCHMOD, fd, mode) == EROFS, path
            assert kernel.call(FCHOWNAT, fd, b"\0", 0, 0, AT_EMPTY_PATH) == EROFS, path


def test_a_taken_kernel_sets_and_asks_no_option_beyond_the_table() -> None:
    """What a guest's sockets need reaches the host; filters, protocols above TCP, devices do not."""
    GETSOCKOPT, SETSOCKOPT, ENOTSOCK = 55, 54, -88
    room, size = b"\0" * 16, b"\x10\0\0\0"
    with idle("--network") as pid, Captive(pid) as kernel:
        for level, name in ((1, 4), (1, 17), (6, 1), (6, 11), (0, 14), (41, 26), (270, 12)):
            assert kernel.call(GETSOCKOPT, 2, level, name, room, size) == ENOTSOCK, (level, name)
        for level, name in ((1, 2), (6, 1), (0, 12), (17, 103)):
            assert kernel.call(SETSOCKOPT, 2, level, name, room, 4) == ENOTSOCK, (level, name)
    for number, level, name in ((GETSOCKOPT, 6, 31), (SETSOCKOPT, 1, 26), (SETSOCKOPT, 6, 11), (GETSOCKOPT, 0, 17)):
        with idle("--network") as pid, pytest.raises(Killed, match="SIGSYS"), Captive(pid) as kernel:
            kernel.call(number, 2, level, name, room, size)


FORBIDDEN = {
    "execve": (59, b"/bin/sh\0", 0, 0), "fork": (57,), "clone3": (435, b"\0" * 64, 64), "ptrace": (101, 16, 1, 0, 0),
    "mount": (165, b"x\0", b"/\0", b"tmpfs\0", 0, 0), "unshare": (272, 0x10000000), "setns": (308, 0, 0),
    "bpf": (321, 0, b"\0" * 64, 64), "io_uring": (425, 8, b"\0" * 120), "userfaultfd": (323, 0), "kill": (62, 1, 0),
    "socket": (41, 1, 1, 0), "setuid": (105, 0), "prctl": (157, 4, 1, 0, 0, 0), "openat": (257, -100, b"/\0", 0),
    "open_by_handle_at": (304, 0, b"\0" * 64, 0), "keyctl": (250, 0, 0, 0), "perf": (298, b"\0" * 128, 0, -1, -1, 0),
    "pidfd_getfd": (438, 0, 0, 0), "executable memory": (9, 0, 4096, 7, 0x22, -1, 0),
    "a device": (259, -100, b"d\0", 0o060666, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN if LONG else random.Random(1).sample(sorted(FORBIDDEN), 6))
def test_a_taken_kernel_dies_of_what_it_never_needs(name: str) -> None:
    """The filter ends it; a call that it needs is done (the control)."""
    number, *arguments = FORBIDDEN[name]
    with idle() as pid:
        with Captive(pid) as kernel:
            assert kernel.call(186) == pid  # gettid
        with pytest.raises(Killed, match="SIGSYS"), Captive(pid) as kernel:
            kernel.call(number, *arguments)


# -- guest code that jumps into the stub -------------------------------------------------------------------------------


def test_a_jump_into_the_stub_calls_the_kernel_and_not_the_host(tmp_path: Path) -> None:
    """From there every call is what it is from anywhere: the kernel's, on the pod's files and processes."""
    (tmp_path / "marker").write_text("of the host")
    victim = subprocess.Popen(["sleep", "100"])
    try:
        program = JUMP + (
            "print(call(base + own, 39) not in (None, 0x7777), call(inside, 39) is not None)\n"  # getpid
            f"print(call(inside, 2, text(b'{tmp_path}/marker'), 0), end=' ')\n"
            "print(call(inside, 257, -100, text(b'/etc/passwd'), 0) > 2)\n"
            f"print(call(inside, 62, {victim.pid}, 9), call(inside, 234, {victim.pid}, {victim.pid}, 9))\n"
            "print(call(inside, 101, 16, 1, 0, 0), call(inside, 310, 1, text(b''), 1, text(b''), 1, 0))\n"
            "print(call(inside, 59, text(b'/bin/true'), 0, 0), call(inside, 165, 0, 0, 0, 0, 0))\n"
        )
        done = run(
            "--bind",
            f"{empty(tmp_path)}:{tmp_path.parent if tmp_path.parent.name == 'tmp' else '/mnt'}",
            program=program,
        )
        lines = done.stdout.splitlines()
        assert lines[0] == "True True", done.stderr
        assert lines[1] == "-2 True"
        assert lines[2] == "-3 -3" and victim.poll() is None
        assert all(int(word) < 0 for word in lines[3].split())
        assert lines[4].split()[1].startswith("-")
    finally:
        victim.kill()
        victim.wait()


def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir(exist_ok=True)
    return tmp_path / "empty"


def test_a_jump_into_the_stub_makes_nothing_that_was_not_ordered() -> None:
    """Processes, threads, mappings of descriptors, slots, huge pages: EPERM, and the kernel goes on."""
    program = JUMP + (
        "print([call(inside, 56, flags) for flags in (17, 0x10f00)])\n"
        "print([call(inside, 9, 0, 4096, 3, 1, fd, 0) for fd in (0, 3, 64, 65)])\n"
        "print(call(inside, 0x5d01), call(inside, 9, 0, 2 << 20, 3, 0x40022, -1, 0))\n"
        "call(inside, 0x5d00); call(inside, 0x5d00, 2**64 - 1); call(inside, 15)\n"  # doorbell, sigreturn
        "print('alive', os.system('true'))\n"
    )
    lines = run(program=program).stdout.splitlines()
    assert lines == ["[-1, -1]", "[-1, -1, -1, -1]", "-1 -1", "alive 0"]


def test_what_was_opened_to_be_read_is_not_written_through_a_mapping(tmp_path: Path) -> None:
    """The stub's mprotect raises the protection of pages that are the guest's own; files stay what they were."""
    program = JUMP + (
        "def attack(name, flags):\n"
        "    open(name, 'wb').write(b'before'.ljust(4096))\n"
        "    file = os.open(name, flags)\n"
        "    libc.mmap.restype = ctypes.c_void_p; libc.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_long] * 5\n"
        "    at = libc.mmap(None, 4096, 1, 1, file, 0)\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        words = struct.pack('9Q', 10, at, 4096, 3, 0, 0, 0, inside, place)\n"
        "        shared[1024:1024 + len(words)] = words\n"
        "        def raised(number, frame): os._exit(1)\n"
        "        signal.signal(signal.SIGSEGV, signal.SIG_DFL)\n"
        "        import threading; threading.Thread(target=lambda: jump(place + 1024), daemon=True).start()\n"
        "        import time; time.sleep(0.2); os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    libc.mprotect(ctypes.c_void_p(at), 4096, 3)\n"  # allowed for the writer only
        "    pid = os.fork()\n"
        "    if pid == 0: ctypes.memmove(at, b'AFTER!', 6); os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    return open(name, 'rb').read(6)\n"
        "for directory in ('/tmp', '/mnt'):\n"
        "    print(attack(directory + '/r', os.O_RDONLY), attack(directory + '/w', os.O_RDWR))\n"
    )
    lines = run("--bind", f"{empty(tmp_path)}:/mnt", program=program).stdout.splitlines()
    assert lines == ["b'before' b'AFTER!'"] * 2
    assert (tmp_path / "empty/r").read_bytes()[:6] == b"before"


# -- too much of everything ------------------------------------------------------------------------------------------


def test_files_in_memory_have_an_end() -> None:
    """A pod that fills its directories is told ENOSPC, file by file; what it removes it has again."""
    program = (
        "import errno, os\n"
        "def fill():\n"
        "    count = 0\n"
        "    for directory in ('/tmp', '/var/tmp', '/dev/shm', '/root'):\n"
        "        try:\n"
        "            with open(directory + '/big', 'wb', buffering=0) as file:\n"
        "                while True: count += file.write(b'x' * (1 << 20))\n"
        "        except OSError as error: assert error.errno == errno.ENOSPC, error\n"
        "    return count >> 20\n"
        "first = fill()\n"
        "for directory in ('/tmp', '/var/tmp', '/dev/shm', '/root'): os.unlink(directory + '/big')\n"
        "print(first, fill() == first, os.statvfs('/tmp').f_blocks * 4096 >> 20)\n"
    )
    done = run("--memory", str(128 << 20), program=program)
    assert done.stdout.split() == ["96", "True", "64"], done.stderr


EXHAUST = {
    "descriptors": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))\nheld = []\n"
    "while True: held.append(os.pipe())",
    "threads": "import threading, time\n"
    "while True: threading.Thread(target=time.sleep, args=(100,), daemon=True).start()",
    "mappings": "import mmap\nheld = []\nfor _ in range(3000): held.append(mmap.mmap(-1, 4096))\nraise OSError",
    "files": "at = 0\nwhile at < 30000:\n    open(f'/tmp/{at}', 'w').close(); at += 1\nraise OSError",
    "directories": "os.chdir('/tmp')\nfor _ in range(3000):\n    os.mkdir('d'); os.chdir('d')\nraise OSError",
    "arguments": "os.execv('/bin/true', ['x' * 100000] * 300)",
    "one argument": "os.execv('/bin/true', ['x' * (1 << 20)])",
}


@pytest.mark.parametrize("name", EXHAUST)
def test_who_takes_too_much_is_refused_and_the_others_go_on(name: str) -> None:
    """An error in the one process; a process beside it works before and after."""
    program = (
        "import os, sys\npid = os.fork()\nif pid == 0:\n    try:\n"
        + "".join(f"        {line}\n" for line in EXHAUST[name].splitlines())
        + "    except (OSError, RuntimeError): os._exit(7)\n    os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.system('true'))\n"
    )
    done = run("--memory", str(512 << 20), program=program)
    assert done.stdout.split() == ["7", "0"], done.stderr


def test_a_kernel_without_descriptors_forks_no_more_and_leaves_no_stub() -> None:
    """EAGAIN as long as sockets hold them all; the host has no process that nobody waits for."""
    program = (
        "import errno, os, socket\nheld, got = [], set()\n"
        "try:\n    while True: held.append(socket.socket())\n"
        "except OSError as error: print(errno.errorcode[error.errno])\n"
        "for _ in range(20):\n    try:\n        if os.fork() == 0: os._exit(0)\n"
        "    except OSError as error: got.add(errno.errorcode[error.errno])\n"
        "held.clear(); print(*got, os.system('true'), flush=True); input()\n"
    )
    argv = ["/bin/sh", "-c", 'ulimit -n 128; exec "$@"', "sh", str(KERNEL), "run", "--network", "--root", "/", "--"]
    argv += ["/usr/bin/python3", "-I", "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert [running.stdout.readline() for _ in "12"] == ["EMFILE\n", "EAGAIN 0\n"]
            names = [status_of(member)["Name"] for member in descendants(running.pid)]
            assert names.count("drupe-guest") == 2, names  # the first one, and the program
        finally:
            running.kill()


def test_full_pipes_at_the_limit_of_memory_cost_the_pod_at_most() -> None:
    """They are the kernel's own memory. It ends, or ends whoever has them; another pod goes on."""
    program = (
        "import os, resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))\nheld = []\n"
        "while True:\n    held.append(os.pipe()); os.set_blocking(held[-1][1], False)\n"
        "    os.write(held[-1][1], b'x' * 65536)\n"
    )
    with idle() as other, memory_cgroup(64 << 20) as members:
        argv = ["/bin/sh", "-c", f'echo $$ >{members}; exec "$@"', "sh", str(KERNEL), "run", "--root", "/", "--"]
        done = subprocess.run(
            [*argv, "/usr/bin/python3", "-I", "-c", program],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode in (-9, 137), done.stderr
        assert status_of(other)["State"].startswith("S")


def test_memory_at_an_end_costs_one_program() -> None:
    """The largest is killed, the kernel and the others stay; the pod sees the limit."""
    program = (
        "import os\npid = os.fork()\n"
        "if pid == 0:\n    held = []\n    while True: held.append(bytearray(os.urandom(1 << 20)))\n"
        "killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "total = int(open('/proc/meminfo').readline().split()[1]) >> 10\n"
        "print(killed, os.system('true'), total)\n"
    )
    with memory_cgroup(160 << 20) as members:
        argv = ["/bin/sh", "-c", f'echo $$ >{members}; exec "$@"', "sh", str(KERNEL), "run", "--root", "/", "--"]
        done = subprocess.run(
            [*argv, "/usr/bin/python3", "-I", "-c", program],
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert done.stdout.split() == ["-9", "0", "160"], done.stderr

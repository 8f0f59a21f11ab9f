"""The application kernel alone (`drupe-appkernel run`): what programs say here is what they say on Linux."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
KERNEL = Path(__file__).parents[2] / "src/drupe/_bin/drupe-appkernel"
TIMEOUT_S = 60
PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module", autouse=True)
def _platform() -> None:
    if not KERNEL.exists():
        pytest.skip("the application kernel is not built (scripts/build-native.sh appkernel)")
    probed = subprocess.run([KERNEL, "probe"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if probed.returncode != 0:
        pytest.skip(probed.stderr.strip())


def here(*command: str, root: Path | str = "/", timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run a command in the application kernel over a directory of the host, which stays as it is."""
    argv = [KERNEL, "run", "--root", root, "--", *command]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
    )


def on_linux(*command: str, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL, env=env
    )


def alike(*command: str, timeout_s: float = TIMEOUT_S) -> None:
    """Output and exit code are those of Linux."""
    expected, got = on_linux(*command, timeout_s=timeout_s), here(*command, timeout_s=timeout_s)
    assert (got.stdout, got.returncode) == (expected.stdout, expected.returncode), got.stderr


SCRIPTS = {
    "pipes": "seq 1 1000 | sort -rn | head -3 | tr '\\n' ' '; echo $?",
    "exit": "(exit 3); echo $?; sh -c 'kill -TERM $$'; echo $?; exit 7",
    "traps": "trap 'echo got' USR1; kill -USR1 $$; sleep 0.1 & wait $!; echo $?",
    "files": "d=$(mktemp -d); cd $d; echo a >f; ln -s f l; ln f h; cat l h; mv f g; ls; rm -r $d; ls $d 2>&-; echo $?",
    "numbers": "[ $$ -gt 0 ] && id -u && umask && cd /usr/lib/.. && pwd",
    "here": "cat <<X\nline $((6 * 7))\nX",
    "background": "for i in 1 2 3; do (echo $i; exit $i) & done; wait; echo done",
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash", "/bin/busybox"])
def test_shells(name: str, shell: str) -> None:
    """dash and bash, dynamically linked, and a static busybox."""
    if not Path(shell).exists():
        pytest.skip(f"{shell} is not installed")
    command = [shell, "sh"] if shell.endswith("busybox") else [shell]
    result = here(*command, "-c", SCRIPTS[name])
    expected = on_linux(*command, "-c", SCRIPTS[name])
    if name == "background":  # in whatever order
        result.stdout, expected.stdout = ("".join(sorted(r.stdout)) for r in (result, expected))
    assert (result.stdout, result.returncode) == (expected.stdout, expected.returncode), result.stderr


PROGRAMS = {
    "threads": """
import threading
found, lock = [], threading.Lock()
def work(n):
    for _ in range(200):
        with lock: found.append(n)
threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(found))
""",
    "subprocess": """
import subprocess
print(subprocess.run(["sh", "-c", "cat; echo err >&2; exit 3"], input=b"in", capture_output=True))
""",
    "signals": """
import os, signal, time
got = []
signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
signal.signal(signal.SIGALRM, lambda number, frame: got.append(number))
os.kill(os.getpid(), signal.SIGUSR1)
signal.setitimer(signal.ITIMER_REAL, 0.02); time.sleep(0.2)
print(got, signal.sigtimedwait([signal.SIGCHLD], 0.01))
pid = os.fork()
if pid == 0:
    import ctypes
    ctypes.string_at(0)
print(os.WTERMSIG(os.waitpid(pid, 0)[1]))
""",
    "memory": """
import mmap, os, tempfile
shared = mmap.mmap(-1, 8192)
private = bytearray(b"old")
pid = os.fork()
if pid == 0:
    shared[:5] = b"child"; private[:] = b"new"; os._exit(0)
os.waitpid(pid, 0)
print(shared[:5], private)
with tempfile.TemporaryFile() as file:
    file.write(b"x" * 10000); file.flush()
    view = mmap.mmap(file.fileno(), 0); view[9999] = 65
    file.seek(9999); print(file.read(), len(view))
""",
    "sockets": """
import asyncio
async def serve(reader, writer):
    writer.write((await reader.readline()).upper()); await writer.drain(); writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\\n"); print(await reader.read())
    child = await asyncio.create_subprocess_exec("echo", "hi", stdout=-1)
    print(await child.communicate())
asyncio.run(main())
""",
    "pool": """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool: print(pool.map(abs, range(-5, 5)))
""",
    "errors": """
import errno, os
def of(call, *args):
    try: return call(*args)
    except OSError as error: return errno.errorcode[error.errno]
r, w = os.pipe()
os.close(r)
print(of(os.open, "/nowhere/x", 0), of(os.listdir, "/etc/passwd"), of(os.write, w, b"x"), of(os.read, 99, 1))
print(of(os.execv, "/etc/passwd", ["x"]), of(os.waitpid, -1, 0), of(os.rmdir, "/etc"), of(os.lseek, w, 0, 0))
print(of(os.kill, 2**22 - 1, 0), of(os.setpgid, 2**22 - 1, 0))
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_python(name: str) -> None:
    """Debian's CPython."""
    if not Path(PYTHON).exists():
        pytest.skip(f"{PYTHON} is not installed")
    alike(PYTHON, "-I", "-c", PROGRAMS[name])


def test_a_compiler_compiles() -> None:
    """A program that forks, execs and writes files by the dozen."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    source = 'int puts(const char *); int main(void) { puts("compiled"); return 5; }'
    alike("/bin/sh", "-c", f"cd $(mktemp -d) && echo '{source}' > a.c && gcc -O1 a.c -o a && ./a")


def test_what_is_written_stays_in_the_pod(tmp_path: Path) -> None:
    """The host's directory is read; changes lie above it."""
    tmp_path.chmod(0o755)  # the kernel's process is a user of its own
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/busybox", tmp_path / "bin/busybox")
    script = "/bin/busybox echo x >/new && /bin/busybox rm /bin/gone && /bin/busybox ls /"
    (tmp_path / "bin/gone").write_text("still here")
    done = here("/bin/busybox", "sh", "-c", script, root=tmp_path)
    assert done.stdout.split() == ["bin", "new"], done.stderr
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["bin", "busybox", "gone"]


@pytest.mark.parametrize("path", ["/../../../etc/passwd", "/proc/self/root/../../etc/passwd", "/link"])
def test_paths_do_not_leave_the_root(tmp_path: Path, path: str) -> None:
    """Neither dots nor links nor /proc lead to the host's files."""
    tmp_path.chmod(0o755)
    for directory in ("bin", "proc"):
        (tmp_path / directory).mkdir()
    shutil.copy("/bin/busybox", tmp_path / "bin/busybox")
    (tmp_path / "link").symlink_to("/etc/passwd")
    done = here("/bin/busybox", "cat", path, root=tmp_path)
    assert done.returncode == 1 and "root:" not in done.stdout and "No such file" in done.stderr


def test_the_hosts_processes_are_out_of_reach() -> None:
    """A pod has its own numbers, and signals nobody else."""
    sleeping = subprocess.Popen(["sleep", "60"])
    try:
        done = here("/bin/sh", "-c", f"kill -9 {sleeping.pid}; kill -9 -1; ls /proc | grep -c '^[0-9]'")
        assert sleeping.poll() is None
        assert int(done.stdout) < 6
    finally:
        sleeping.kill()
        sleeping.wait()


def test_what_is_not_there_is_said() -> None:
    """A missing program is 127, one that is no program 126, with a line and no more."""
    for program, code, word in [("/nowhere", 127, "ENOENT"), ("/etc/passwd", 126, "EACCES")]:
        done = here(program)
        assert (done.returncode, done.stderr) == (code, f"drupe-appkernel: {program}: {word}\n")


RANDOM_CALLS = """
import ctypes, os, random, signal, time
libc, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(65536)
at = ctypes.addressof(buffer)
SIGNALLING = {62, 129, 200, 234, 297}
def argument(rng):
    return rng.choice([0, 1, rng.randrange(10), rng.randrange(4096), at, at + rng.randrange(60000),
                       2**64 - 1 - rng.randrange(4096), rng.getrandbits(64), rng.getrandbits(32)])
def child(rng):
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    os.setpgid(0, 0)
    for _ in range(30):
        for place in range(0, 4096, 8):
            buffer[place:place + 8] = argument(rng).to_bytes(8, "little")
        number = rng.choice([n for n in range(470) if n not in SIGNALLING])
        libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(argument(rng)) for _ in range(6)])
for seed in range(40):
    pid = os.fork()
    if pid == 0:
        child(random.Random(seed))
        os._exit(0)
    deadline = time.monotonic() + 1
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.005)
        if time.monotonic() > deadline:
            os.kill(pid, 9)
print("alive")
"""


def test_no_call_takes_the_kernel_down() -> None:
    """Every number with random arguments, in children that may well die; the kernel has no bug to report."""
    done = here(PYTHON, "-I", "-c", RANDOM_CALLS)
    assert done.stdout.splitlines()[-1:] == ["alive"]
    assert "a bug of the kernel" not in done.stderr and "panicked" not in done.stderr

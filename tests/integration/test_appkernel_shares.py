"""Directories of the host inside the application kernel: the same steps there and on Linux leave the same tree."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
KERNEL = Path(__file__).parents[2] / "src/drupe/_bin/drupe-appkernel"
PYTHON = "/usr/bin/python3"
TIMEOUT_S = 60


@pytest.fixture(scope="module", autouse=True)
def _platform() -> None:
    if not KERNEL.exists():
        pytest.skip("the application kernel is not built (scripts/build-native.sh appkernel)")
    probed = subprocess.run([KERNEL, "probe"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if probed.returncode != 0:
        pytest.skip(probed.stderr.strip())


def inside(share: Path, program: str, *words: str) -> str:
    """Run Python in the application kernel with this directory at /mnt."""
    argv = [KERNEL, "run", "--root", "/", "--bind", f"{share}:/mnt", "--", PYTHON, "-I", "-c", program, "/mnt", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def on_linux(directory: Path, program: str, *words: str) -> str:
    argv = [PYTHON, "-I", "-c", program, str(directory), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout


STEPS = """
import mmap, os, random, stat, sys
os.chdir(sys.argv[1]); os.umask(0o022)
rng = random.Random(int(sys.argv[2]))
def path(): return "/".join(rng.choices("abcd", k=rng.randint(1, 3)))
def put(name, at, cut):
    fd = os.open(name, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if cut else 0), 0o666)
    try: return os.pwrite(fd, b"x" * (at % 700), at), os.fstat(fd).st_size
    finally: os.close(fd)
def add(name):
    with open(name, "ab") as file: return file.write(b"end"), file.tell()
def mapped(name):
    with open(name, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0:1] = b"M"
        return len(view)
def times(name, at): os.utime(name, ns=(at * 1001, at * 10**6 + 1), follow_symlinks=False)
def xattr(name, value):
    os.setxattr(name, "user.k", b"%d" % value)
    return os.getxattr(name, "user.k"), sorted(os.listxattr(name))
def tree():
    for where, directories, files in sorted(os.walk(".")):
        for name in sorted(directories + files):
            at = os.path.join(where, name); s = os.lstat(at)
            body = os.readlink(at) if stat.S_ISLNK(s.st_mode) else 0
            if stat.S_ISREG(s.st_mode): body = open(at, "rb").read()
            size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
            yield at, oct(s.st_mode), s.st_uid, s.st_gid, size, s.st_nlink, body
for step in range(250):
    one, two, value = path(), path(), rng.randrange(5000)
    calls = [lambda: os.mkdir(one, value & 0o7777 | 0o700), lambda: os.mkdir(one), lambda: put(one, value, value % 2),
        lambda: put(one, value, 0),
        lambda: add(one), lambda: mapped(one), lambda: os.unlink(one), lambda: os.rmdir(one),
        lambda: os.rename(one, two), lambda: os.rename(one, two), lambda: os.symlink(two, one),
        lambda: os.link(one, two, follow_symlinks=False),
        lambda: os.chmod(one, value & 0o7777 | 0o700),
        lambda: os.chown(one, value, value // 2, follow_symlinks=False),
        lambda: times(one, value), lambda: xattr(one, value), lambda: os.mkfifo(one, value & 0o777),
        lambda: os.truncate(one, value),
        lambda: sorted(os.listdir(one)), lambda: os.readlink(one),
        lambda: os.stat(one).st_mtime_ns if value % 3 else None]
    kind = rng.randrange(len(calls))
    try: answer = calls[kind]()
    except OSError as error: answer = error.errno
    except ValueError: answer = "empty"
    print(step, kind, one, two, value, answer if kind != 20 else 0)
print(*tree(), sep="\\n")
"""


@pytest.mark.parametrize("seed", range(4))
def test_the_same_steps_leave_the_same_tree(seed: int, tmp_path: Path) -> None:
    """Every answer, and what the host sees in the end: kinds, modes, owners, sizes, links, contents."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir(mode=0o700)
    theirs.mkdir(mode=0o700)
    expected, got = on_linux(theirs, STEPS, str(seed)), inside(ours, STEPS, str(seed))
    differ = [pair for pair in zip(expected.splitlines(), got.splitlines(), strict=False) if pair[0] != pair[1]]
    assert differ[:1] == []
    assert sorted(listing(ours)) == sorted(listing(theirs))


def listing(directory: Path) -> Iterator[tuple[str, int, int, int, int]]:
    for path in directory.rglob("*"):
        seen = path.lstat()
        yield str(path.relative_to(directory)), seen.st_mode, seen.st_uid, seen.st_gid, seen.st_nlink


def test_both_sides_see_what_the_other_changes(tmp_path: Path) -> None:
    """While the program runs."""
    program = (
        "import os, sys, time; os.chdir(sys.argv[1]); open('new', 'w').write('guest'); os.rename('new', 'ready')\n"
        "while not os.path.exists('answer'): time.sleep(0.01)\n"
        "print(open('answer').read(), os.path.exists('ready'))"
    )
    argv = [KERNEL, "run", "--root", "/", "--bind", f"{tmp_path}:/mnt", "--", PYTHON, "-I", "-c", program, "/mnt"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + TIMEOUT_S
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "ready").read_text() == "guest"
        (tmp_path / "ready").unlink()
        (tmp_path / "new").write_text("host")
        (tmp_path / "new").rename(tmp_path / "answer")
        out, _ = running.communicate(timeout=TIMEOUT_S)
    assert out == "host False\n"


def test_links_of_the_host_are_followed_inside_only(tmp_path: Path) -> None:
    """Whoever places a link in a shared directory leads the pod's programs to files of the pod."""
    (tmp_path / "outside").write_text("outside")
    share = tmp_path / "share"
    share.mkdir()
    (share / "up").symlink_to("../outside")
    (share / "absolute").symlink_to(tmp_path / "outside")
    program = (
        "import os, sys\n"
        "for name in 'up', 'absolute', '../mnt/../outside':\n"
        "    try: print(open(sys.argv[1] + '/' + name).read())\n"
        "    except OSError as error: print(error.errno)\n"
    )
    assert inside(share, program).split() == ["2", "2", "2"]
    assert (share / "up").read_text() == "outside"


def test_a_program_without_rights_loses_set_id_bits(tmp_path: Path) -> None:
    """As on Linux: who writes to a set-user-id file as somebody else does not leave it one."""
    program = (
        "import os, sys; os.chdir(sys.argv[1]); os.setresuid(1000, 1000, 1000)\n"
        "fd = os.open('f', os.O_WRONLY); os.write(fd, b'evil'); print(oct(os.stat('f').st_mode))"
    )
    (tmp_path / "f").touch()
    (tmp_path / "f").chmod(0o6777)
    tmp_path.chmod(0o755)
    assert inside(tmp_path, program).strip() == "0o100777"
    assert (tmp_path / "f").stat().st_mode & 0o6000 == 0

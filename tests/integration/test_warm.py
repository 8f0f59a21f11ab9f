"""The warm command line over a real daemon: nothing but its speed may tell it from a Python of the caller's own.

DRUPE_WARM_ONLY makes the client fail where it would fall back, so a warm test cannot pass by falling back.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import resource
import shutil
import signal
import struct
import subprocess
import tarfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import drupe
from drupe.linux.unix_sockets import send_fds
from framework.daemon import CALL_TIMEOUT_S, COMMAND, Daemon
from framework.leaks import wait_until
from framework.probes import each

pytestmark = pytest.mark.root

NOT_WARM = 125
PACKAGE = Path(drupe.__file__).parent
WARM, PYTHON = {"DRUPE_WARM_ONLY": "1"}, {"DRUPE_NO_WARM": "1"}
LOOP = "trap 'exit 3' TERM; echo ready; while true; do sleep 0.05; done"
RUN = ("run", "--rm", "--network", "none")

Popen = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def no_pods_left(daemon: Daemon) -> Iterator[None]:
    """Each test starts with a warm process and ends without pods and without commands of its own."""
    wait_for_warm(daemon)
    wait_until(lambda: not children(warm_pid(daemon)), what="forks of the warm process end")
    yield
    daemon.delete_pods()
    wait_until(lambda: not children(warm_pid(daemon)), what="forks of the warm process end")


@pytest.fixture
def web(daemon: Daemon) -> str:
    """A running container called web."""
    command(daemon, "run", "-d", "--name", "web", "--network", "none", "busybox", "sh", "-c", LOOP)
    return "web"


def warm_pid(daemon: Daemon) -> int:
    """The warm process; 0 when there is none."""
    for pid in children(daemon.pid):
        if b"drupe.cli.warm" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return pid
    return 0


def wait_for_warm(daemon: Daemon) -> None:
    wait_until(lambda: inside(daemon, "version", env=WARM).returncode == 0, what="the warm process serves")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def argv(daemon: Daemon, *words: str) -> list[str]:
    # the warm process refuses who is in another network namespace
    return ["nsenter", f"--net=/proc/{daemon.pid}/ns/net", str(COMMAND), *words]


def environment(daemon: Daemon, env: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in daemon.environment().items() if k != "DRUPE_NO_WARM"} | env


def inside(daemon: Daemon, *words: str, env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    options = {"stdin": subprocess.DEVNULL} | options if "input" not in options else options
    return subprocess.run(
        argv(daemon, *words), env=environment(daemon, env), capture_output=True, timeout=CALL_TIMEOUT_S, **options
    )


def command(daemon: Daemon, *words: str, **options: Any) -> bytes:
    done = inside(daemon, *words, env=WARM, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def started(daemon: Daemon, *words: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A warm command in the background, gone at the end whatever happens."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    process = subprocess.Popen(argv(daemon, *words), env=environment(daemon, WARM), **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def fork_of(daemon: Daemon, client: subprocess.Popen[bytes]) -> int:
    """The one command that the warm process runs at the moment. `client` has been told that it runs: of a fork that
    ends before, the client knows only that nothing was done."""
    wait_until(lambda: holds_pidfd(client.pid), what="the client hears that its command runs", timeout_s=30)
    wait_until(lambda: len(children(warm_pid(daemon))) == 1, what="the command before has been reaped")
    return children(warm_pid(daemon))[0]


def holds_pidfd(pid: int) -> bool:
    targets = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            targets.append(str(link.readlink()))
    return "anon_inode:[pidfd]" in targets


SAME = [
    ("ps",),
    ("ps", "--json"),
    ("--version",),
    ("version",),
    ("--help",),
    ("run", "--help"),
    ("network", "ls"),
    (),
    ("nonsense",),
    ("ps", "--nonsense"),
    ("inspect", "not-there"),
    ("run",),
    (*RUN, "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"),
    (*RUN, "busybox", "not-there"),
    (*RUN, "-it", "busybox", "true"),
    (*RUN, "busybox", "sh", "-c", "kill -9 $$"),
    (*RUN, "--init", "busybox", "sh", "-c", "kill -9 $$"),
    ("run", "--network", "none", "-e", "TERM", "-e", "LC_CTYPE", "--hostname", "x", "--rm", "busybox", "env"),
    ("exec", "web", "id"),
    ("logs", "web"),
    ("prune",),
    ("completion", "bash"),
]


@pytest.mark.parametrize("words", SAME, ids=" ".join)
def test_both_ways_say_the_same(daemon: Daemon, web: str, words: Sequence[str]) -> None:
    warm, cold = (inside(daemon, *words, env=env) for env in (WARM, PYTHON))
    assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr)


LOCALES = [
    {}, {"LANG": "C"}, {"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"LANG": "C.UTF-8"}, {"LC_ALL": "C.UTF-8"}, {"LANG": ""},
    {"LANG": "not_THERE.UTF-8"}, {"LC_CTYPE": "C.UTF-8"}, {"LC_CTYPE": "not_THERE"}, {"LANG": "C", "LC_CTYPE": ""},
]  # fmt: skip


@pytest.mark.parametrize("variables", each(2, LOCALES), ids=str)
def test_both_ways_have_the_same_streams_and_locale(
    daemon: Daemon, web: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANG", "LC_ALL", "LC_CTYPE", "LANGUAGE"):
        monkeypatch.delenv(name, raising=False)
    odd = os.fsdecode(b"\xffx\xc3\xa9")
    words = (*RUN, "-e", "LC_CTYPE", "-e", "ODD", "busybox", "env")
    for line in (words, ("inspect", odd), ("exec", "web", "echo", odd, "é")):
        warm, cold = (inside(daemon, *line, env=env | variables | {"ODD": odd}) for env in (WARM, PYTHON))
        got = [sorted(x for x in end.stdout.splitlines() if b"HOSTNAME" not in x) for end in (warm, cold)]
        assert (warm.returncode, got[0], warm.stderr) == (cold.returncode, got[1], cold.stderr)


def test_input_from_pipe_and_file(daemon: Daemon, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "in").write_bytes(data)
    assert command(daemon, *RUN, "-i", "busybox", "cat", input=data) == data
    with (tmp_path / "in").open("rb") as file:
        assert command(daemon, *RUN, "-i", "busybox", "cat", stdin=file) == data


def test_closed_streams(daemon: Daemon) -> None:
    for shell in ('exec 1>&-; exec "$@"', 'exec 0<&-; exec "$@"', 'exec 2>&- 1>&-; exec "$@"'):
        codes = []
        for env in (WARM, PYTHON):
            line = ["sh", "-c", shell, "sh", *argv(daemon, *RUN, "busybox", "sh", "-c", "echo hi; exit 5")]
            codes.append(subprocess.run(line, env=environment(daemon, env), timeout=60, check=False).returncode)
        assert codes == [5, 5]


def test_more_descriptors(daemon: Daemon) -> None:
    """A shell's <(…) is a descriptor that only the caller has."""
    script = '"$@" --env-file <(echo FROM=process) --env-file /dev/stdin busybox env <<<ALSO=stdin'
    line = ["bash", "-c", script, "bash", *argv(daemon, *RUN)]
    done = subprocess.run(line, env=environment(daemon, WARM), capture_output=True, timeout=60, check=True)
    assert {b"FROM=process", b"ALSO=stdin"} <= set(done.stdout.splitlines())


def test_directory_environment_and_umask_are_the_callers(daemon: Daemon, web: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    words = (*RUN, "-v", "./x:/x:ro", "-e", "MINE", "busybox", "sh", "-c", "cat /x; echo $MINE")
    done = inside(daemon, *words, env=WARM | {"MINE": "yes"}, cwd=tmp_path)
    assert (done.stdout, done.stderr) == (b"mineyes\n", b"")
    command(daemon, "cp", "x", "web:/tmp/y", cwd=tmp_path)
    command(daemon, "cp", "web:/tmp/y", "z", cwd=tmp_path)
    assert (tmp_path / "z").read_text() == "mine"
    command(daemon, *RUN, "--cidfile", "id", "busybox", "true", cwd=tmp_path, preexec_fn=lambda: os.umask(0o027))
    assert (tmp_path / "id").stat().st_mode & 0o777 == 0o640


def test_a_working_directory_that_is_gone(daemon: Daemon, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    shell = 'cd "$0" && rmdir "$0" && exec "$@"'
    ends = []
    for env in (WARM, PYTHON):
        gone.mkdir()
        line = ["sh", "-c", shell, str(gone), *argv(daemon, "cp", "web:/x", "y")]
        done = subprocess.run(line, env=environment(daemon, env), capture_output=True, timeout=60, check=False)
        ends.append((done.returncode, done.stderr))
    assert ends[0] == ends[1]


def test_limits_and_priority_are_the_callers(daemon: Daemon) -> None:
    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 21))
        os.nice(5)
        os.sched_setaffinity(0, {0})

    with started(daemon, "events", preexec_fn=restrict) as process:
        pid = fork_of(daemon, process)
        wait_until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 5, what="the priority is taken over")
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (100, 200)
        assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == (1 << 20, 1 << 21)
        wait_until(lambda: os.sched_getaffinity(pid) == {0}, what="the processors are taken over")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_workload(daemon: Daemon, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 9' {name}; echo ready; while true; do sleep 0.05; done"
    with started(daemon, *RUN, "busybox", "sh", "-c", script) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(20) == 9
        assert process.stdout.read() == f"got {name}\n".encode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL, signal.SIGALRM])
def test_a_signal_ends_a_command_as_it_ends_python(daemon: Daemon, number: signal.Signals) -> None:
    ends = []
    for env in (WARM, PYTHON):
        line = argv(daemon, "events")
        process = subprocess.Popen(line, env=environment(daemon, env), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        time.sleep(0.5)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        ends.append((process.returncode, errors))
    assert ends[0] == ends[1]


def test_ignored_signals_stay_ignored(daemon: Daemon) -> None:
    """nohup(1): a hang-up means nothing to a command that does not ask for it."""
    with started(daemon, "events", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        pid = fork_of(daemon, process)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert process.poll() is None and Path(f"/proc/{pid}").exists()


def test_a_killed_client_takes_its_command_along(daemon: Daemon) -> None:
    with started(daemon, "events") as process:
        pid = fork_of(daemon, process)
        process.kill()
        process.wait()
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="the fork ends")


def test_a_killed_fork_is_told_to_the_shell(daemon: Daemon) -> None:
    with started(daemon, "events") as process:
        os.kill(fork_of(daemon, process), signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL


def test_job_control(daemon: Daemon) -> None:
    """SIGTSTP stops the client, as its shell expects, and the command; SIGCONT lets both go on."""
    # a group of its own, as a shell makes it: the kernel stops no process of an orphaned group (setpgid(2)), as ours
    # may be where the tests themselves run in the background
    with started(daemon, "events", process_group=0) as process:
        pid = fork_of(daemon, process)
        wait_until(lambda: state(pid) == "S", what="the fork waits")
        process.send_signal(signal.SIGTSTP)
        assert os.WSTOPSIG(os.waitpid(process.pid, os.WUNTRACED)[1]) == signal.SIGTSTP
        wait_until(lambda: state(pid) == "T", what="the fork stops")
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: state(pid) == "S" and state(process.pid) == "S", what="both go on")


def descriptors(pid: int) -> list[str]:
    return [fd.name for fd in Path(f"/proc/{pid}/fd").iterdir()]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_death_of_the_warm_process_does_not_touch_commands(fresh_daemon: Daemon) -> None:
    wait_for_warm(fresh_daemon)
    with started(fresh_daemon, *RUN, "busybox", "sh", "-c", LOOP) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        os.kill(warm_pid(fresh_daemon), signal.SIGKILL)
        wait_until(lambda: not warm_pid(fresh_daemon), what="the warm process is gone")
        assert inside(fresh_daemon, "version", env=WARM).returncode == NOT_WARM
        assert inside(fresh_daemon, *RUN, "busybox", "echo", "hi", env={}).stdout == b"hi\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 3


def test_a_killed_daemon_takes_the_warm_process_along_and_a_new_one_has_another(fresh_daemon: Daemon) -> None:
    wait_for_warm(fresh_daemon)
    pid = warm_pid(fresh_daemon)
    fresh_daemon.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="the warm process ends")
    fresh_daemon.start()
    wait_for_warm(fresh_daemon)


def test_a_stopped_warm_process_holds_nobody_up(fresh_daemon: Daemon) -> None:
    wait_for_warm(fresh_daemon)
    pid = warm_pid(fresh_daemon)
    os.kill(pid, signal.SIGSTOP)
    assert inside(fresh_daemon, *RUN, "busybox", "echo", "hi", env={}).stdout == b"hi\n"
    os.kill(pid, signal.SIGCONT)
    wait_for_warm(fresh_daemon)


def test_who_is_different_is_refused(daemon: Daemon) -> None:
    line = [str(COMMAND), "version"]
    env = environment(daemon, WARM)
    enter = ["nsenter", f"--net=/proc/{daemon.pid}/ns/net"]
    others = (
        [],
        [*enter, "unshare", "--mount"],
        [*enter, "unshare", "--pid", "--fork"],
        [*enter, "setpriv", "--no-new-privs"],
        [*enter, "setpriv", "--bounding-set=-sys_admin"],
        [*enter, "setpriv", "--groups=7"],
        [*enter, "setpriv", "--regid=7", "--clear-groups"],
        [*enter, "env", "PYTHONPATH=/nowhere"],
    )
    for before in others:
        done = subprocess.run([*before, *line], env=env, capture_output=True, timeout=60, check=False)
        assert done.returncode == NOT_WARM, before
        fallen = subprocess.run(
            [*before, *line], env=environment(daemon, {}), capture_output=True, timeout=60, check=False
        )
        assert fallen.stdout.startswith(b"client:"), before


@pytest.mark.parametrize("variable", ["DRUPE_NO_WARM", "DRUPE_DEBUG"])
def test_switched_off(daemon: Daemon, variable: str) -> None:
    assert inside(daemon, "version", env=WARM | {variable: "1"}).returncode == NOT_WARM


def test_many_at_once(daemon: Daemon) -> None:
    def one(number: int) -> bool:
        return command(daemon, *RUN, "busybox", "echo", str(number)) == f"{number}\n".encode()

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(one, range(20)))


def test_garbage_harms_nobody(daemon: Daemon) -> None:
    from socket import AF_UNIX, SOCK_STREAM, socket

    pid = warm_pid(daemon)
    path = str(daemon.run / "cli.sock")
    for data in (
        b"",
        b"x",
        b"GET / HTTP/1.0\r\n\r\n",
        b"drupe-1\n" + b"\xff" * 4,
        b"drupe-1\n" + struct.pack("<I", 40),
    ):
        with socket(AF_UNIX, SOCK_STREAM) as conn:
            conn.connect(path)
            send_fds(conn, data or b"\0", [0, 1, 2])
    silent = [socket(AF_UNIX, SOCK_STREAM) for _ in range(5)]
    for conn in silent:
        conn.connect(path)
    assert command(daemon, "version").startswith(b"client:")
    for conn in silent:
        conn.close()
    wait_until(lambda: not children(pid), what="their forks end")
    # poll, listener and nothing more
    assert sorted(descriptors(pid), key=int)[:3] == ["0", "1", "2"]
    wait_until(lambda: len(descriptors(pid)) == 4, what="no descriptor is left")


def test_only_its_own_user_may_use_it(daemon: Daemon) -> None:
    assert (daemon.run / "cli.sock").stat().st_mode & 0o777 == 0o600


class Terminal:
    """A command on a terminal of its own: it leads the session, as a shell's foreground job would."""

    def __init__(self, daemon: Daemon, *words: str, env: dict[str, str], rows: int = 33, columns: int = 99) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        line = argv(daemon, *words)
        self.before = termios.tcgetattr(self.master)
        self.process = subprocess.Popen(
            line, env=environment(daemon, env) | {"TERM": "xterm"}, stdin=slave, stdout=slave, stderr=slave,
            preexec_fn=own_terminal,
        )  # fmt: skip
        self.slave = slave
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def expect(self, text: bytes, *, timeout_s: float = 10.0) -> None:
        os.set_blocking(self.master, False)

        def come() -> bool:
            with suppress(OSError):
                self.seen += os.read(self.master, 65536)
            return text in self.seen

        try:
            wait_until(come, what=f"{text!r} on the terminal", timeout_s=timeout_s)
        except AssertionError:
            raise AssertionError(f"{text!r} is not in {self.seen!r}") from None

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.master)[3] & termios.ICANON

    def close(self) -> int:
        code = self.process.wait(20)
        assert termios.tcgetattr(self.master)[:4] == self.before[:4], "the terminal's modes were not given back"
        os.close(self.slave)
        os.close(self.master)
        return code


def test_plain_commands_on_a_terminal_are_warm(daemon: Daemon) -> None:
    terminal = Terminal(daemon, *RUN, "busybox", "echo", "hi", env=WARM)
    terminal.expect(b"hi\r\n")
    assert terminal.close() == 0


def test_an_interactive_session(daemon: Daemon) -> None:
    """Keys need a process in the terminal's own session: such a command is handed back before it did anything."""
    terminal = Terminal(daemon, *RUN, "-it", "busybox", "sh", env={})
    terminal.expect(b"# ")
    assert terminal.is_raw
    terminal.type(b"stty size; echo a$((1+1))b\r")
    terminal.expect(b"33 99")
    terminal.expect(b"a2b")
    terminal.resize(40, 120)
    terminal.type(b"sleep 0.3; stty size\r")
    terminal.expect(b"40 120")
    terminal.type(b"sleep 100\r")
    time.sleep(0.3)
    terminal.type(b"\x03echo still=$?\r")
    terminal.expect(b"still=130")
    terminal.type(b"exit 6\r")
    assert terminal.close() == 6


def test_an_interactive_session_ended_by_a_signal_gives_the_terminal_back(daemon: Daemon, web: str) -> None:
    terminal = Terminal(daemon, "exec", "-it", "web", "sh", env={})
    terminal.expect(b"# ")
    terminal.process.send_signal(signal.SIGHUP)
    terminal.close()


def test_ctrl_c_on_a_terminal(daemon: Daemon) -> None:
    terminal = Terminal(daemon, *RUN, "--init", "busybox", "sleep", "1000", env=WARM)
    wait_until(lambda: b"sleep" in inside(daemon, "ps", env=PYTHON).stdout, what="it runs")
    time.sleep(0.2)
    terminal.type(b"\x03")
    assert terminal.close() == 130


def test_output_to_a_terminal_follows_its_size(daemon: Daemon) -> None:
    """-t without -i: no keys, so it is warm, and SIGWINCH has to come through."""
    script = "stty size; while true; do stty size; sleep 0.1; done"
    terminal = Terminal(daemon, *RUN, "-t", "busybox", "sh", "-c", script, env=WARM)
    terminal.expect(b"33 99")
    terminal.resize(50, 111)
    terminal.expect(b"50 111")
    terminal.process.send_signal(signal.SIGINT)
    terminal.close()


def test_a_question_on_a_terminal(daemon: Daemon) -> None:
    terminal = Terminal(daemon, "system", "prune", env={})
    terminal.expect(b"[y/N]")
    terminal.type(b"n\r")
    assert terminal.close() == 130


def test_a_background_job_is_pythons(daemon: Daemon, web: str) -> None:
    """What job control may stop has to be in its session."""
    script = 'stty tostop; set -m; "$@" & wait $!; echo code=$?; stty -tostop'
    master, slave = pty.openpty()
    line = ["setsid", "--ctty", "--wait", "bash", "-c", script, "bash", *argv(daemon, "version")]
    process = subprocess.Popen(line, env=environment(daemon, WARM), stdin=slave, stdout=slave, stderr=slave)
    try:
        seen = b""
        while b"code=" not in seen:
            seen += os.read(master, 4096)
        assert b"code=125" in seen or b"code=150" in seen
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def test_changed_code_is_never_run(fresh_daemon: Daemon, tmp_path: Path) -> None:
    """A change anywhere in the package ends the warm process; commands go on with what is on disk."""
    package = Path(shutil.copytree(PACKAGE, tmp_path / "src/drupe"))
    env = {"PYTHONPATH": str(package.parent)}
    fresh_daemon.kill()
    fresh_daemon.start(env=env)
    wait_until(lambda: inside(fresh_daemon, "ps", env=WARM | env).returncode == 0, what="the warm process serves")
    with (package / "cli/ps.py").open("a") as file:
        file.write("\n\ndef show(*args: object) -> None: raise SystemExit(77)\nps.callback = lambda **_: show()\n")
    assert inside(fresh_daemon, "ps", env=WARM | env).returncode == NOT_WARM
    assert inside(fresh_daemon, "ps", env=env).returncode == 77
    wait_until(lambda: not warm_pid(fresh_daemon), what="the warm process ends")


def test_the_command_is_found_however_it_is_called(daemon: Daemon, tmp_path: Path) -> None:
    """By a link, a chain of links, a relative path and a bare name; warm and not."""
    (tmp_path / "one").symlink_to(COMMAND)
    (tmp_path / "drupe").symlink_to("one")
    path = f"{tmp_path}:{os.environ['PATH']}"
    for env in (WARM, PYTHON):
        for name in (str(tmp_path / "drupe"), "./one", "drupe"):
            line = [*argv(daemon)[:2], name, "version"]
            done = subprocess.run(
                line, env=environment(daemon, env) | {"PATH": path}, cwd=tmp_path, capture_output=True, check=False
            )
            assert done.stdout.startswith(b"client:"), (name, env, done.stderr)


def test_an_archive_through_the_streams(daemon: Daemon, web: str, tmp_path: Path) -> None:
    archive = command(daemon, "cp", "web:/etc/passwd", "-")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == ["passwd"]
    command(daemon, "cp", "-", "web:/tmp", input=archive)
    assert b"root" in command(daemon, "exec", "web", "cat", "/tmp/passwd")


def test_completion_is_answered(daemon: Daemon, web: str) -> None:
    env = {"_DRUPE_COMPLETE": "bash_complete", "COMP_WORDS": "drupe stop we", "COMP_CWORD": "2"}
    assert inside(daemon, env=WARM | env).stdout == inside(daemon, env=PYTHON | env).stdout == b"plain,web\n"

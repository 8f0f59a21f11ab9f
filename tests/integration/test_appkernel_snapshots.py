"""Snapshots and forks of pods under the application kernel: what ran goes on, and no two are alike."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.integration.test_terminals import Session

from framework.appkernels import leaves_nothing
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root
HERE = ("--sandbox", "appkernel")
DEBIAN = tuple(word for name in ("usr", "lib", "lib64") for word in ("-v", f"/{name}:/{name}:ro"))
LOOP = "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.05; done"


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    daemon = request.getfixturevalue("fresh_daemon" if "fresh_daemon" in request.fixturenames else "daemon")
    with leaves_nothing(daemon, tmp_path):
        yield


def said(daemon: Daemon, *argv: str) -> str:
    return daemon.command(*argv, check=True).stdout


def start(daemon: Daemon, name: str, *words: str, script: str) -> None:
    said(daemon, "run", "-d", "--name", name, *HERE, *words, "busybox", "sh", "-c", script)


def refusal(daemon: Daemon, *argv: str) -> str:
    done = daemon.command(*argv)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    return done.stderr


def inside(daemon: Daemon, pod: str, *argv: str) -> str:
    return daemon.command("exec", pod, *argv).stdout


def count(daemon: Daemon, pod: str) -> int:
    """The file is empty for a moment each time that it is written."""
    tries = (inside(daemon, pod, "cat", "/count") for _ in range(5))
    return int(next(filter(None, tries), 0))


def test_a_snapshot_goes_on_as_another_pod(fresh_daemon: Daemon) -> None:
    """Memory and files of one moment, an identity of its own, across a restart of the daemon; then a fork."""
    daemon = fresh_daemon
    start(daemon, "first", script=LOOP)
    wait_until(lambda: count(daemon, "first") > 5, what="it counts")
    said(daemon, "snapshot", "create", "first", "moment")
    at = count(daemon, "first")
    wait_until(lambda: count(daemon, "first") > at, what="the first one goes on")
    said(daemon, "rm", "-f", "first")
    daemon.kill()
    daemon.start()
    pod = said(daemon, "snapshot", "restore", "--name", "second", "moment").strip()
    assert count(daemon, "second") > 5
    wait_until(lambda: count(daemon, "second") > at, what="the second one goes on")
    assert inside(daemon, "second", "hostname") == pod[:12] + "\n"
    said(daemon, "fork", "--name", "third", "second")
    assert count(daemon, "third") > 5
    addresses = {inside(daemon, ref, "ip", "-4", "addr", "show", "eth0") for ref in ("second", "third")}
    assert len(addresses) == 2
    with next((daemon.root / "snapshots").glob("*/memory/state")).open("ab") as file:
        file.write(b"x")
    assert "is damaged" in refusal(daemon, "snapshot", "restore", "moment")
    said(daemon, "snapshot", "rm", "moment")


WHO = """test -e /tmp/begun && touch /tmp/go || exit; until [ -e /tmp/drawn ]; do sleep 0.1; done; hostname
ip link show eth0 | awk '/ether/ {print $2}'; ip -4 -o addr show eth0 | awk '{print $4}'
cat /proc/sys/kernel/random/uuid /tmp/drawn"""
DRAWS = """touch /tmp/begun; until [ -e /tmp/go ]; do sleep 0.1; done
head -c 16 /dev/urandom | od -An -tx1 >/tmp/x; mv /tmp/x /tmp/drawn; sleep 1000"""


def test_forks_are_not_alike(daemon: Daemon) -> None:
    """What runs goes on in each, with names, addresses and random numbers of its own."""
    start(daemon, "origin", "--tmpfs", "/tmp", script=DRAWS)
    wait_until(lambda: daemon.command("exec", "origin", "test", "-e", "/tmp/begun").returncode == 0, what="it began")
    for name in ("one", "two"):
        said(daemon, "fork", "--name", name, "origin")
    told = [said(daemon, "exec", name, "sh", "-c", WHO).splitlines() for name in ("origin", "one", "two")]
    assert len(told[0]) == 5
    for same in zip(*told, strict=True):
        assert len(set(same)) == 3, same


# Each part of it tells its own state; a line is written for each "tick" that the parent gets.
BUSY = r"""
import ctypes, mmap, os, select, signal, socket, subprocess, tempfile, threading, time
numbers = {}
shared = mmap.mmap(-1, 1 << 20)
both = os.fork()
if both == 0:
    while shared[0] == 0: time.sleep(0.02)
    shared[70000:70005] = b"child"; os._exit(0)
held = open("/own/held", "w+"); held.write("held"); held.flush()
gone = tempfile.TemporaryFile(dir="/own"); gone.write(b"nameless"); gone.flush()
private = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); private[4096:4101] = b"pages"
r, w = os.pipe(); os.write(w, b"in the pipe")
e = os.eventfd(7)
condition, state = threading.Condition(), {"go": False}
def waits():
    with condition:
        while not state["go"]: condition.wait()
    numbers["waited"] = True
def counts():
    while True:
        numbers["counted"] = numbers.get("counted", 0) + 1; time.sleep(0.02)
threads = [threading.Thread(target=t, daemon=True) for t in (waits, counts)]
for thread in threads: thread.start()
child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
signal.signal(signal.SIGALRM, lambda *_: numbers.update(alarms=numbers.get("alarms", 0) + 1))
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
poll = select.epoll(); poll.register(e, select.EPOLLIN)
listener = socket.create_server(("0.0.0.0", 7000))
one, other = socket.socketpair()
one.sendmsg([b"sent"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, e.to_bytes(4, "little"))])
at = socket.socket(socket.AF_UNIX); at.bind("/own/at"); at.listen()
caller = socket.socket(socket.AF_UNIX); caller.connect("/own/at"); caller.send(b"called")
mathematics = 1.0 / 3.0
open("/own/ready", "w").close()
while not os.path.exists("/own/check"): time.sleep(0.02)
before = dict(numbers)
with condition: state["go"] = True; condition.notify_all()
threads[0].join(20)
child.stdin.write(b"to the child"); child.stdin.close()
held.seek(0); gone.seek(0)
said = [held.read(), gone.read(), bytes(private[4096:4101]), os.read(r, 99), poll.poll(0) == [(e, select.EPOLLIN)],
        os.eventfd_read(e), child.stdout.read(), child.wait(), numbers["waited"], mathematics]
socket.create_connection(("127.0.0.1", 7000)).close()
data, control, _, _ = other.recvmsg(99, 99)
shared[0] = 1; os.waitpid(both, 0)
said += [data, len(control), at.accept()[0].recv(99), shared[70000:70005]]
again = socket.socket(socket.AF_UNIX); again.connect("/own/at")
while numbers["counted"] <= before["counted"] or numbers["alarms"] <= before["alarms"]: time.sleep(0.02)
with open("/own/x", "w") as out: out.write(repr(said))
os.rename("/own/x", "/own/said")
time.sleep(1000)
"""
SAID = "['held', b'nameless', b'pages', b'in the pipe', True, 7, b'to the child', 0, True, "
SAID += "0.3333333333333333, b'sent', 1, b'called', b'child']"


def there(daemon: Daemon, pod: str, path: str) -> bool:
    return daemon.command("exec", pod, "test", "-e", path).returncode == 0


def test_what_a_program_had_it_has_again(daemon: Daemon, tmp_path: Path) -> None:
    """Threads that wait and sleep, children, pipes, sockets, timers, events, memory of its own and shared, files."""
    (tmp_path / "busy.py").write_text(BUSY)
    words = ("-v", f"{tmp_path}/busy.py:/busy.py:ro", *DEBIAN, "--tmpfs", "/own")
    start(daemon, "busy", *words, script="exec /usr/bin/python3 -I /busy.py")
    wait_until(lambda: there(daemon, "busy", "/own/ready"), what="the program has begun")
    said(daemon, "fork", "--name", "twin", "busy")
    for pod in ("busy", "twin"):
        said(daemon, "exec", pod, "touch", "/own/check")
        wait_until(lambda pod=pod: there(daemon, pod, "/own/said"), what=f"{pod} tells")  # type: ignore[misc]
        assert inside(daemon, pod, "cat", "/own/said") == SAID


def redis(daemon: Daemon, pod: str, words: str) -> str:
    return inside(daemon, pod, "sh", "-c", f"/usr/bin/redis-cli -p 7001 {words}")


def test_redis_answers_where_it_was(daemon: Daemon) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (scripts/setup.sh --tests)")
    line = "exec /usr/bin/redis-server --port 7001 --save '' --protected-mode no --dir /own"
    start(daemon, "redis", *DEBIAN, "--tmpfs", "/own", script=line)
    wait_until(lambda: redis(daemon, "redis", "ping") == "PONG\n", what="redis answers")
    redis(daemon, "redis", "set word kept")
    redis(daemon, "redis", "eval \"for i=1,20000 do redis.call('set', i, i) end\" 0")
    said(daemon, "snapshot", "create", "redis", "data")
    redis(daemon, "redis", "set word changed")
    said(daemon, "snapshot", "restore", "--name", "again", "data")
    wait_until(lambda: redis(daemon, "again", "get word") == "kept\n", what="redis answers again")
    assert redis(daemon, "again", "dbsize") == "20001\n"
    assert redis(daemon, "redis", "get word") == "changed\n"
    said(daemon, "snapshot", "rm", "data")


KEPT = """
import ctypes, fcntl, os, struct, time
libc = ctypes.CDLL(None, use_errno=True); libc.shmat.restype = ctypes.c_void_p
memory = libc.shmget(0x51, 8192, 0o1600); place = libc.shmat(memory, None, 0); ctypes.memmove(place, b"shared", 6)
unused = libc.shmget(0x52, 4096, 0o1600)
sems = libc.semget(0x53, 2, 0o1600); libc.semctl(sems, 1, 16, 5)
queue = libc.msgget(0x54, 0o1600); libc.msgsnd(queue, struct.pack("q", 3) + b"told", 4, 0)
def operate(index, change, flags): return libc.semop(sems, struct.pack("Hhh", index, change, flags), 1)
child = os.fork()
if child == 0: operate(0, 2, 0x1000); operate(1, -9, 0); ctypes.memmove(place + 10, b"child", 5); os._exit(7)
while libc.semctl(sems, 0, 12) != 2: time.sleep(0.01)
held = open("/own/held", "w+"); fcntl.lockf(held, fcntl.LOCK_EX, 4, 8)
whole = open("/own/whole", "w+"); fcntl.fcntl(whole, 37, struct.pack("hhqqi", 1, 0, 0, 0, 0))  # F_OFD_SETLK
os.mkdir("/own/seen"); notices = libc.inotify_init1(0o4000)
watch = libc.inotify_add_watch(notices, b"/own/seen", 0x100); open("/own/seen/before", "w").close()
open("/own/ready", "w").close()
while not os.path.exists("/own/check"): time.sleep(0.02)
open("/own/seen/after", "w").close(); events = os.read(notices, 999)
names = [name for name in (b"before", b"after") if name in events]
again = libc.inotify_add_watch(notices, b"/own/seen", 0x100) == watch
other = os.fork()
if other == 0:
    def taken(*args):
        try: fcntl.lockf(*args); return False
        except OSError: return True
    first, second = open("/own/held", "w+"), open("/own/whole", "w+")
    os._exit(taken(first, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 8) + 2 * taken(first, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
             + 4 * taken(second, fcntl.LOCK_EX | fcntl.LOCK_NB))
locks = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]); operate(1, 4, 0)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]); room = ctypes.create_string_buffer(99)
said = [code, ctypes.string_at(place, 6), ctypes.string_at(place + 10, 5)]
said += [libc.semctl(sems, 0, 12), libc.semctl(sems, 1, 12), libc.msgrcv(queue, room, 50, 0, 0o4000), room.raw[8:12]]
said += [libc.shmget(0x52, 4096, 0) == unused, locks, names, again]
said += [libc.shmget(0, 1, 0o1600) > unused]
open("/own/part", "w").write(repr(said)); os.rename("/own/part", "/own/said")
time.sleep(1000)
"""
KEPT_SAID = "[7, b'shared', b'child', 0, 0, 4, b'told', True, 5, [b'before', b'after'], True, True]"


def test_what_the_kernel_keeps_it_keeps_again(daemon: Daemon, tmp_path: Path) -> None:
    """System V IPC, record locks and watches: of the pod, of two forks, each for itself."""
    (tmp_path / "kept.py").write_text(KEPT)
    words = ("-v", f"{tmp_path}/kept.py:/kept.py:ro", *DEBIAN, "--tmpfs", "/own")
    start(daemon, "kept", *words, script="exec /usr/bin/python3 -I /kept.py")
    wait_until(lambda: there(daemon, "kept", "/own/ready"), what="the program has begun")
    said(daemon, "snapshot", "create", "kept", "calls")
    for name in ("left", "right"):
        said(daemon, "snapshot", "restore", "--name", name, "calls")
    for pod in ("kept", "left", "right"):
        said(daemon, "exec", pod, "touch", "/own/check")
        wait_until(lambda pod=pod: there(daemon, pod, "/own/said"), what=f"{pod} tells")  # type: ignore[misc]
        assert inside(daemon, pod, "cat", "/own/said") == KEPT_SAID, pod
    said(daemon, "snapshot", "rm", "calls")


def test_what_cannot_be_saved_is_refused_by_name(daemon: Daemon) -> None:
    """And goes on."""
    start(daemon, "fifo", script="mkfifo /fifo; (exec cat /fifo) & echo up; wait")
    wait_until(lambda: "up" in said(daemon, "logs", "fifo"), what="it runs")
    wait_until(lambda: "fifo" in inside(daemon, "fifo", "ps"), what="it waits")
    wait_until(lambda: "a FIFO" in refusal(daemon, "snapshot", "create", "fifo"), what="it is refused")
    assert said(daemon, "exec", "fifo", "echo", "alive") == "alive\n"


ON_A_TERMINAL = 'stty rows 33 cols 99; echo begun; read -r word; echo "said $word to $(tty) of $(stty size)"; exit 3'


def test_a_shell_on_a_terminal_goes_on(daemon: Daemon) -> None:
    """With the size that it had, in a fork of a fork; the one that it came from goes on, too."""
    said(daemon, "run", "-d", "-t", "-i", "--name", "typed", *HERE, "busybox", "sh", "-c", ON_A_TERMINAL)
    wait_until(lambda: "begun" in said(daemon, "logs", "typed"), what="it waits for a word")
    said(daemon, "fork", "--name", "second", "typed")
    said(daemon, "fork", "--name", "third", "second")
    for pod in ("third", "second", "typed"):
        done = daemon.command("attach", pod, input=f"word-{pod}\n")
        assert done.returncode == 3, (pod, done.stdout, done.stderr)
        wait_until(
            lambda pod=pod: f"said word-{pod} to /dev/pts/0 of 33 99" in said(daemon, "logs", pod),  # type: ignore[misc]
            what=f"{pod} has read it",
        )


# A terminal within: who has made it types half a line before, and the other half and an interrupt after.
MULTIPLEXER = """
import fcntl, os, pty, select, signal, struct, termios, time
shell = "trap 'echo interrupted' INT; echo up; while :; do read -r line && echo got $line $(stty size); done"
pid, master = pty.fork()
if pid == 0: os.execv("/bin/sh", ["sh", "-c", shell])
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 21, 91, 0, 0))
seen = b""
def see(word):
    global seen
    while word not in seen: seen += os.read(master, 999)
    seen = seen.partition(word)[2]
see(b"up"); os.write(master, b"pi"); see(b"pi")
open("/own/ready", "w").close()
while not os.path.exists("/own/check"): time.sleep(0.02)
os.write(master, b"ng\\n"); see(b"got ping 21 91")
os.write(master, b"\\x03"); see(b"interrupted")
os.kill(pid, 9); os.waitpid(pid, 0)
open("/own/part", "w").write("all"); os.rename("/own/part", "/own/said")
time.sleep(1000)
"""


def run_python(daemon: Daemon, tmp_path: Path, name: str, program: str) -> None:
    """A program that says by a file that it is ready, and that it looks again when there is another."""
    (tmp_path / f"{name}.py").write_text(program)
    words = ("-v", f"{tmp_path}/{name}.py:/program.py:ro", *DEBIAN, "--tmpfs", "/own")
    start(daemon, name, *words, script="exec /usr/bin/python3 -I /program.py")
    wait_until(lambda: there(daemon, name, "/own/ready"), what="the program has begun")


def check(daemon: Daemon, pod: str, expected: str) -> None:
    said(daemon, "exec", pod, "touch", "/own/check")
    wait_until(lambda: there(daemon, pod, "/own/said"), what=f"{pod} tells")
    assert inside(daemon, pod, "cat", "/own/said") == expected, pod


def test_terminals_of_programs_go_on(daemon: Daemon, tmp_path: Path) -> None:
    run_python(daemon, tmp_path, "inner", MULTIPLEXER)
    said(daemon, "fork", "--name", "other", "inner")
    for pod in ("inner", "other"):
        check(daemon, pod, "all")


def test_who_came_from_outside_on_a_terminal_is_hung_up(daemon: Daemon) -> None:
    """Nobody is there any more who shows what it says."""
    start(daemon, "host", script="sleep 1000")
    script = "trap 'touch /gone; exit' HUP; touch /up; read x"
    with closing(Session(daemon, "exec", "-t", "-i", "host", "sh", "-c", script, tty=True)):
        wait_until(lambda: there(daemon, "host", "/up"), what="it waits")
        said(daemon, "fork", "--name", "alone", "host")
        wait_until(lambda: there(daemon, "alone", "/gone"), what="it is told")
        assert not there(daemon, "host", "/gone")


QUEUES = """
import ctypes, os, struct, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def opened(name, flags): return libc.mq_open(name, flags, 0o600, struct.pack("8q", 0, 4, 16, 0, 0, 0, 0, 0))
def sent(queue, text, priority): assert libc.mq_send(queue, text, len(text), priority) == 0, ctypes.get_errno()
def received(queue):
    text, priority = ctypes.create_string_buffer(16), ctypes.c_uint()
    size = libc.mq_receive(queue, text, 16, ctypes.byref(priority))
    return (text.raw[:size], priority.value)
both, gone, empty = (opened(name, 0o102) for name in (b"/both", b"/gone", b"/empty"))
for text, priority in ((b"low", 1), (b"high", 9), (b"higher", 9)): sent(both, text, priority)
sent(gone, b"nameless", 2); libc.mq_unlink(b"/gone")
got = []
waits = threading.Thread(target=lambda: got.append(received(empty))); waits.start()
open("/own/ready", "w").close()
while not os.path.exists("/own/check"): time.sleep(0.02)
again, none = opened(b"/both", 2), libc.mq_open(b"/gone", 2)
said = [received(again), received(both), received(both), received(gone), none]
sent(empty, b"late", 3); waits.join()
open("/own/part", "w").write(repr(said + got)); os.rename("/own/part", "/own/said")
time.sleep(1000)
"""


def test_message_queues_keep_what_they_hold(daemon: Daemon, tmp_path: Path) -> None:
    """With names and without, and who waits for a message; each pod has its own."""
    run_python(daemon, tmp_path, "queues", QUEUES)
    said(daemon, "fork", "--name", "same", "queues")
    for pod in ("queues", "same"):
        check(daemon, pod, "[(b'high', 9), (b'higher', 9), (b'low', 1), (b'nameless', 2), -1, (b'late', 3)]")

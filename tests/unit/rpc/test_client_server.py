"""Client and server against each other over a real unix socket, with a toy handler."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import (
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    InvalidState,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)
from drupe.rpc.aio import AsyncClient
from drupe.rpc.client import Client
from drupe.rpc.frames import MAX_FRAME_BYTES, Hello, Invoke, encode
from drupe.rpc.inprocess import AsyncInProcessClient, InProcessClient
from drupe.rpc.server import Call, Handler, Server
from drupe.spec.control import Empty, FileInfo, FileRead, LogLine, Logs, Ref, Stop
from drupe.spec.status import PodStatus
from framework.leaks import wait_until
from framework.serving import serving


def open_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Toy:
    """Answers a few real methods with simple behaviour, and notes what happened."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self.finished = threading.Event()
        self.sent = 0

    async def handle(self, call: Call) -> Any:
        return await getattr(self, "do_" + call.method.replace(".", "_"))(call)

    async def do_pod_status(self, call: Call) -> Any:
        match call.params.ref:
            case "missing":
                raise NotFound("no pod 'missing'", hint="drupe pod list", stage="lookup", what="pod")
            case "bug":
                raise ZeroDivisionError("oops")
            case "liar":
                return 42
        return PodStatus(id=call.params.ref, name="n", namespace="default", state="running", sandbox="fake")

    async def do_pod_wait(self, call: Call) -> Any:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def do_pod_stop(self, call: Call) -> Any:
        call.detach()
        self.started.set()
        await asyncio.sleep(0.05)
        await call.send_item("ignored once the caller is gone")
        self.finished.set()
        return PodStatus(id="x", name="n", namespace="default", state="stopped", sandbox="fake")

    async def do_container_logs(self, call: Call) -> None:
        count = call.params.tail if call.params.tail is not None else 10**9
        for number in range(count):
            await call.send_item(LogLine(at=float(number), stream="stdout", data=b"x" * 4096))
            self.sent = number + 1

    async def do_file_read(self, call: Call) -> Any:
        fd = call.take_fd("data")
        os.write(fd, b"from the server")
        os.close(fd)
        return FileInfo(path=call.params.path, type="file", size=15, mode=0o644, uid=0, gid=0, mtime=0.0)

    async def do_exec_start(self, call: Call) -> Any:
        raise InvalidArgument(" ".join(sorted(call.fds)))

    async def do_system_shutdown(self, call: Call) -> None:
        return None

    async def do_container_inspect(self, call: Call) -> Any:
        return {"big": bytes(MAX_FRAME_BYTES)} if call.params.ref == "big" else [1, {"a": None}]


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def path(tmp_path: Path, toy: Toy) -> Iterator[str]:
    with serving(tmp_path / "s", toy.handle) as path:
        yield path


@pytest.fixture(params=["socket", "in process"])
def client(request: pytest.FixtureRequest, toy: Toy) -> Iterator[Client | InProcessClient]:
    """The same behaviour whether the handler is behind a socket or in this process."""
    if request.param == "socket":
        with Client.connect(request.getfixturevalue("path")) as client:
            yield client
        return

    @asynccontextmanager
    async def hosted() -> AsyncIterator[Handler]:
        yield toy.handle

    with InProcessClient.open(hosted) as client:
        yield client


def test_a_call_answers_the_record(client: Client) -> None:
    status = client.call("pod.status", Ref(ref="abc"))
    assert isinstance(status, PodStatus) and status.id == "abc" and status.state == "running"
    assert client.call("pod.status", {"ref": "plain"}).id == "plain"
    assert client.call("system.shutdown") == Empty()
    assert client.call("container.inspect", Ref(ref="x")) == [1, {"a": None}]


def test_an_error_arrives_whole(client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        client.call("pod.status", Ref(ref="missing"))
    error = caught.value
    assert (error.message, error.stage, error.hint) == ("no pod 'missing'", "lookup", "drupe pod list")
    assert error.details == {"what": "pod"}
    assert client.call("pod.status", Ref(ref="still")).id == "still"


def test_a_bug_is_an_internal_error_and_is_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "drupe.rpc"), pytest.raises(InternalError, match="ZeroDivisionError: oops"):
        client.call("pod.status", Ref(ref="bug"))
    assert "ZeroDivisionError" in caplog.text and "Traceback" in caplog.text


def test_a_wrong_answer_type_is_an_internal_error(client: Client) -> None:
    with pytest.raises(InternalError, match="answered int, not PodStatus"):
        client.call("pod.status", Ref(ref="liar"))


def test_bad_calls_are_refused_before_they_are_sent(client: Client) -> None:
    with pytest.raises(Unsupported, match=r"unknown method 'no\.such'"):
        client.call("no.such")
    with pytest.raises(InvalidArgument, match=r"pod\.status.*reff"):
        client.call("pod.status", {"reff": "x"})
    with pytest.raises(InvalidArgument, match="unexpected descriptor 'stdin'"):
        client.call("pod.status", Ref(ref="x"), fds={"stdin": 0})


def test_the_server_checks_calls_itself(path: str) -> None:
    """A client that does not check (another language) gets the same errors, and the connection goes on."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(path)
        raw.settimeout(5)
        raw.sendall(encode(Hello()) + encode(Invoke(1, "no.such")) + encode(Invoke(2, "pod.status", {"ref": 5})))
        raw.sendall(encode(Invoke(3, "pod.status", {"ref": "ok"})))
        data = b""
        while b"running" not in data:
            data += raw.recv(65536)
    assert b"Unsupported" in data and b"Expected `str`, got `int`" in data


def test_descriptors_are_passed(client: Client) -> None:
    read_end, write_end = os.pipe()
    info = client.call("file.read", FileRead(ref="c", path="/x"), fds={"data": write_end})
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() == b"from the server"  # and EOF: nobody kept the other end
    assert info.path == "/x"


def test_untaken_descriptors_are_closed(client: Client) -> None:
    read_end, write_end = os.pipe()
    params = {"ref": "c", "spec": {"argv": ["x"]}}
    with pytest.raises(InvalidArgument, match="stderr stdout"):
        client.call("exec.start", params, fds={"stdout": write_end, "stderr": write_end})
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() == b""


def test_a_needed_descriptor_that_is_missing(client: Client) -> None:
    with pytest.raises(InvalidArgument, match=r"file\.read needs the descriptor 'data'"):
        client.call("file.read", FileRead(ref="c", path="/x"))


def test_items_stream_in_order(client: Client) -> None:
    with client.stream("container.logs", Logs(ref="c", tail=1000)) as stream:
        assert [line.at for line in stream] == [float(n) for n in range(1000)]
        assert stream.result == Empty()
    seen: list[Any] = []
    client.call("container.logs", Logs(ref="c", tail=3), on_item=seen.append)
    assert [line.data for line in seen] == [b"x" * 4096] * 3


def test_a_slow_reader_slows_the_server(client: Client, toy: Toy) -> None:
    """Nothing is read: the server stops after socket buffer and high-water mark, far from the million."""
    with client.stream("container.logs", Logs(ref="c")) as stream:
        next(stream)
        before = -1
        while before != toy.sent:
            before = toy.sent
            stop = threading.Event()
            stop.wait(0.05)
        assert 0 < toy.sent < 2000


def test_closing_a_stream_cancels_the_call(client: Client, toy: Toy) -> None:
    stream = client.stream("pod.wait", {"ref": "x"})
    assert toy.started.wait(5)
    stream.close()
    assert toy.cancelled.wait(5)
    with pytest.raises(Unavailable, match="cancelled by this program"):
        _ = stream.result


def test_closing_a_stream_stops_a_handler_that_only_sends(client: Client, toy: Toy) -> None:
    with client.stream("container.logs", Logs(ref="c")) as stream:
        next(stream)
    sent = -1
    while sent != toy.sent:
        sent = toy.sent
        threading.Event().wait(0.05)
    assert client.call("pod.status", Ref(ref="alive"), timeout_s=5).id == "alive"


def test_a_detached_call_survives_its_caller(client: Client, toy: Toy) -> None:
    stream = client.stream("pod.stop", Stop(ref="x"))
    assert toy.started.wait(5)
    stream.close()
    assert toy.finished.wait(5)


def test_a_deadline_cancels_on_the_server(client: Client, toy: Toy) -> None:
    with pytest.raises(DeadlineExceeded, match=r"pod\.wait took longer than 0\.05 s") as caught:
        client.call("pod.wait", {"ref": "x"}, timeout_s=0.05)
    assert caught.value.may_have_run
    assert toy.cancelled.is_set()


def test_an_answer_over_the_limit_is_an_error_not_a_hang(path: str) -> None:
    with Client.connect(path) as client, pytest.raises(ResourceExhausted, match="over the limit"):
        client.call("container.inspect", Ref(ref="big"))


def test_threads_share_a_client(client: Client) -> None:
    wrong: list[str] = []

    def work(name: str) -> None:
        for number in range(30):
            ref = f"{name}-{number}"
            if client.call("pod.status", Ref(ref=ref)).id != ref:
                wrong.append(ref)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no daemon answers") as caught:
        Client.connect(str(tmp_path / "s"))
    assert not caught.value.may_have_run and "drupe serve" in caught.value.hint


def test_a_daemon_with_another_root_is_not_asked(tmp_path: Path, toy: Toy) -> None:
    """Who names a state directory gets what is there, or is told; who names none gets the daemon that is there."""
    state, link = tmp_path / "state", tmp_path / "link"
    state.mkdir()
    link.symlink_to(state)

    async def asked(path: str, root: str) -> None:
        await (await AsyncClient.connect(path, root=root)).close()

    with serving(tmp_path / "s", toy.handle, root=str(state)) as path:
        for same in ("", str(state), str(link), f"{state}/../state"):
            Client.connect(path, root=same).close()
            asyncio.run(asked(path, same))
        for connect in (lambda: Client.connect(path, root="/other"), lambda: asyncio.run(asked(path, "/other"))):
            with pytest.raises(InvalidState, match=f"has its state in {state}, not in /other") as caught:
                connect()
            assert "--run" in caught.value.hint
    with serving(tmp_path / "s", toy.handle) as path:  # one of before, which does not tell
        Client.connect(path, root="/other").close()


def test_a_restarted_daemon_is_found_again(tmp_path: Path, toy: Toy) -> None:
    with serving(tmp_path / "s", toy.handle) as path:
        client = Client.connect(path)
        client.call("pod.status", Ref(ref="a"))
    with pytest.raises(Unavailable, match="no daemon answers"):
        client.call("pod.status", Ref(ref="b"))
    with serving(tmp_path / "s", toy.handle):
        assert client.call("pod.status", Ref(ref="c")).id == "c"
    client.close()


def test_losing_the_daemon_in_a_call(tmp_path: Path) -> None:
    """A server that hangs up after the call has begun: the work may have happened."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(encode(Hello()))
            while b"pod.status" not in peer.recv(65536):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    with (
        Client.connect(str(tmp_path / "s")) as client,
        pytest.raises(Unavailable, match="lost the connection") as caught,
    ):
        client.call("pod.status", Ref(ref="x"))
    thread.join()
    listener.close()
    assert caught.value.may_have_run


def test_socket_mode_and_second_server(path: str, toy: Toy) -> None:
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    with pytest.raises(AlreadyExists, match="another daemon serves"):
        asyncio.run(Server(path, toy.handle).start())


def test_a_dead_socket_is_replaced(tmp_path: Path, toy: Toy) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.close()
    with serving(tmp_path / "s", toy.handle) as path, Client.connect(path) as client:
        assert client.call("pod.status", Ref(ref="x")).id == "x"
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", encode(Invoke(1, "system.info")), encode(Hello(99))])
def test_a_peer_that_speaks_something_else_is_told_and_hung_up_on(path: str, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(path)
        raw.settimeout(5)
        raw.sendall(said)
        data = b""
        while chunk := raw.recv(65536):
            data += chunk
    assert b"error" in data


def test_a_client_at_the_wrong_socket(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"\x00\x00\x00\x05hello")

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(DataLoss, match="not a frame"):
        Client.connect(str(tmp_path / "s"))
    thread.join()
    listener.close()


def test_disconnect_cancels_every_call_of_the_connection(path: str, toy: Toy) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(path)
        raw.sendall(encode(Hello()) + encode(Invoke(1, "pod.wait", {"ref": "x"})))
        assert toy.started.wait(5)
    assert toy.cancelled.wait(5)


@pytest.mark.parametrize("kind", ["socket", "in process"])
def test_async_twin(kind: str, request: pytest.FixtureRequest, toy: Toy) -> None:
    """The asyncio clients: results, errors, items, descriptors, cancellation, deadline, many at once."""

    async def main() -> None:
        client = AsyncInProcessClient(toy.handle) if kind != "socket" else await AsyncClient.connect(path)
        async with client:
            await check_async_client(client, toy)

    path = request.getfixturevalue("path") if kind == "socket" else ""
    asyncio.run(main())


async def check_async_client(client: AsyncClient | AsyncInProcessClient, toy: Toy) -> None:
    answers = await asyncio.gather(*(client.call("pod.status", Ref(ref=f"r{n}")) for n in range(50)))
    assert [answer.id for answer in answers] == [f"r{n}" for n in range(50)]
    with pytest.raises(NotFound):
        await client.call("pod.status", Ref(ref="missing"))
    async with await client.stream("container.logs", Logs(ref="c", tail=500)) as stream:
        assert [line.at async for line in stream] == [float(n) for n in range(500)]
        assert stream.result == Empty()
    read_end, write_end = os.pipe()
    await client.call("file.read", FileRead(ref="c", path="/x"), fds={"data": write_end})
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() == b"from the server"
    with pytest.raises(DeadlineExceeded):
        await client.call("pod.wait", {"ref": "x"}, timeout_s=0.05)
    toy.started.clear()
    toy.cancelled.clear()
    task = asyncio.create_task(client.call("pod.wait", {"ref": "x"}))
    await asyncio.to_thread(toy.started.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(toy.cancelled.wait, 5)


def test_an_embedded_context_that_fails_to_start(toy: Toy) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[Handler]:
        raise Unavailable("no keeper")
        yield toy.handle

    with pytest.raises(Unavailable, match="no keeper"):
        InProcessClient.open(broken)
    with pytest.raises(Unavailable, match="no keeper"):
        asyncio.run(AsyncInProcessClient.open(broken()))
    assert "drupe-loop" not in [thread.name for thread in threading.enumerate()]


def test_an_embedded_context_is_left_once_calls_have_ended(toy: Toy) -> None:
    said: list[str] = []

    @asynccontextmanager
    async def hosted() -> AsyncIterator[Handler]:
        yield toy.handle
        said.append("cancelled" if toy.cancelled.is_set() else "still running")

    client = InProcessClient.open(hosted)
    stream = client.stream("pod.wait", {"ref": "x"})
    assert toy.started.wait(5)
    client.close()
    assert said == ["cancelled"]
    with pytest.raises(Unavailable, match="was cancelled"):
        stream.wait()
    with pytest.raises(Unavailable, match="closed"):
        client.call("pod.status", {"ref": "x"})


def test_advance_with_a_time_limit_keeps_the_call(client: Client, path: str) -> None:
    with client.stream("pod.wait", {"ref": "x"}) as stream:
        assert stream.advance(0) is False
        assert stream.advance(0.01) is False

    async def main() -> None:
        async with AsyncClient(path) as twin, await twin.stream("pod.wait", {"ref": "x"}) as stream:
            assert await stream.advance(0.01) is False

    asyncio.run(main())


def test_no_descriptor_is_left(tmp_path: Path, toy: Toy) -> None:
    before = open_count()
    with serving(tmp_path / "s", toy.handle) as path, Client.connect(path) as client:
        for _ in range(20):
            client.call("pod.status", Ref(ref="x"))
            client.stream("pod.wait", {"ref": "x"}).close()
    wait_until(lambda: open_count() == before, what="all descriptors closed")


def test_the_blocking_client_does_not_import_asyncio() -> None:
    import subprocess
    import sys

    code = "import sys, drupe.rpc.client; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

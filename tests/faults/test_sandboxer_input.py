"""Whoever speaks to the Sandbox Controller may send anything: it is answered with the right status, within bounded time
and memory, others are served meanwhile, and nothing stays behind."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from drupe.rpc.containerd import sandbox_controller_pb2 as pb
from drupe.rpc.containerd.sandbox_pb2 import Sandbox
from drupe.spec.control import ListFilter
from framework.cri import pod_config
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.probes import needs_keeper, needs_program, needs_root

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

SERVICE = "containerd.services.sandbox.v1.Controller"
TIMEOUT_S = 60.0
MEBIBYTE = 1 << 20
GROWTH_BYTES = 128 * MEBIBYTE  # of which a call that waits takes 18 KiB
LONGEST = 4096  # of a refusal's text: clients take 8 KiB of trailers
METHODS = pb.DESCRIPTOR.services_by_name["Controller"].methods_by_name
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One that serves containerd's sandboxes."""
    needs_root()
    needs_keeper()
    needs_program("crun")
    directory = tmp_path_factory.mktemp("s")
    (directory / "drupe.toml").write_text("[containerd]\nsandboxer = true\n")
    daemon = Daemon(directory)
    try:
        daemon.start(env={"DRUPE_CONFIG": str(directory / "drupe.toml")})
        wait_until((daemon.run / "sandboxer.sock").exists, what="it serves them", timeout_s=TIMEOUT_S)
        yield daemon
    finally:
        daemon.close()


class Caller:
    """A gRPC channel of its own. `call` answers the status and its text, or OK and the bytes."""

    def __init__(self, daemon: Daemon) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(f"unix://{daemon.run}/sandboxer.sock", options=options)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def later(self, method: str, data: Message | bytes, *, service: str = SERVICE, **options: Any) -> Any:
        raw = data if isinstance(data, bytes) else data.SerializeToString()
        stub = self.channel.unary_unary(f"/{service}/{method}")
        return stub.future(raw, **{"timeout": TIMEOUT_S, "wait_for_ready": True, **options})

    def call(self, method: str, data: Message | bytes, **options: Any) -> tuple[Any, Any]:
        return self.answer(self.later(method, data, **options))

    def answer(self, call: Any) -> tuple[Any, Any]:
        try:
            return Code.OK, call.result()
        except grpc.RpcError:
            text = str(call.details())
            assert len(text) < LONGEST and "\n" not in text, text[:300]
            return call.code(), text

    def ask(self, method: str, **fields: Any) -> tuple[Any, Any]:
        return self.call(method, getattr(pb, METHODS[method].input_type.name)(**fields))

    def create(self, name: str, **fields: Any) -> tuple[Any, Any]:
        return self.ask("Create", sandbox_id=name, **{"options": options(), **fields})


def options(name: str = "s") -> AnyMessage:
    """A pod as the CRI describes it."""
    config = pod_config(name, Path("/tmp/none"))
    return AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=config.SerializeToString())


@pytest.fixture
def caller(daemon: Daemon) -> Iterator[Caller]:
    """After the test another is served as before, memory has not grown, and no pod is left."""
    with Caller(daemon) as one:
        assert one.ask("Status", sandbox_id="nobody")[0] is Code.NOT_FOUND
        before, log = rss_bytes(daemon.pid), len(daemon.log.read_text())
        yield one
    with Caller(daemon) as other:
        assert other.ask("Status", sandbox_id="nobody")[0] is Code.NOT_FOUND
    wait_until(lambda: not pods(daemon), what="no pod is left")
    assert rss_bytes(daemon.pid) - before < GROWTH_BYTES
    assert "Traceback" not in daemon.log.read_text()[log:], daemon.log.read_text()[log:]


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pods(daemon: Daemon) -> list[Any]:
    with daemon.client() as client:
        return list(client.call("pod.list", ListFilter(), timeout_s=20).pods)


# -- bytes, calls and messages ----------------------------------------------------------------------------------------


def test_bytes_that_are_no_http(caller: Caller, daemon: Daemon) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    with ExitStack() as stack:
        for sent in (b"\xff" * 4096, preface[:9], preface, preface + b"\xff" * 64, preface + b"\x00\x00\x00\x04", b""):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(daemon.run / "sandboxer.sock"))
            with suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(sent)
        assert caller.ask("Status", sandbox_id="nobody")[0] is Code.NOT_FOUND  # some of them are silent all the while


def test_calls_and_messages_that_are_none(caller: Caller) -> None:
    assert caller.call("Nope", b"")[0] is Code.UNIMPLEMENTED
    assert caller.call("Status", b"", service="containerd.services.sandbox.v9.Controller")[0] is Code.UNIMPLEMENTED
    for method in METHODS:
        assert caller.call(method, b"\xff\xff\xff")[0] is Code.INVALID_ARGUMENT, method
        assert caller.call(method, b"")[0] in (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.OK), method
    assert caller.call("Create", bytes(5 * MEBIBYTE))[0] is Code.RESOURCE_EXHAUSTED
    heavy = [("x-heavy", "x" * 200_000)]
    assert caller.call("Status", b"", metadata=heavy)[0] in (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.INTERNAL)


def test_ids_that_are_none(caller: Caller) -> None:
    for name in ("", "a/b", "../../x", "a\nb", "x" * 10_000, "\0", "é", "-x", "."):
        _refuses(caller, name)


def _refuses(caller: Caller, name: str) -> None:
    code, text = caller.create(name)
    assert code is Code.INVALID_ARGUMENT, text
    for method in set(METHODS) - {"Create"}:
        code, text = caller.ask(method, sandbox_id=name)
        gone = method in ("Stop", "Shutdown") and code is Code.OK  # what is not there is gone
        assert gone or code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), (method, text)


OPTIONS = AnyMessage(type_url="runtimeoptions.v1.Options", value=b"\xff")
WRONG: dict[str, dict[str, Any]] = {
    "options of another type": {"options": AnyMessage(type_url="x", value=b"y")},
    "options that cannot be read": {"options": AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=b"\xff\xff")},
    "a network that is not there": {"netns_path": "/no/such"},
    "a network that is a file": {"netns_path": "/etc/passwd"},
    "a network with a NUL": {"netns_path": "/a\0b"},
    "a relative network": {"netns_path": "../../etc"},
    "a handler of no kind": {"sandbox": Sandbox(runtime={"name": "io.containerd.drupe-nothing.v2"})},
    "an option that is none": {"sandbox": Sandbox(runtime={"options": OPTIONS})},
}


def test_pods_that_are_none(caller: Caller) -> None:
    expected = (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED, Code.FAILED_PRECONDITION)
    for name, fields in WRONG.items():
        code, text = caller.create("s", **fields)
        if code is Code.OK:
            code, text = caller.ask("Start", sandbox_id="s")
        caller.ask("Shutdown", sandbox_id="s")
        assert code in expected, (name, code, text)


def test_a_network_that_is_a_fifo(caller: Caller, tmp_path: Path) -> None:
    """Nobody writes to it."""
    os.mkfifo(tmp_path / "fifo")
    code, _ = caller.create("s", netns_path=str(tmp_path / "fifo"))
    if code is Code.OK:
        code, _ = caller.ask("Start", sandbox_id="s")
    caller.ask("Shutdown", sandbox_id="s")
    assert code not in (Code.OK, Code.INTERNAL, Code.UNKNOWN, Code.DEADLINE_EXCEEDED)


def test_namespaces_that_are_none(caller: Caller, daemon: Daemon) -> None:
    before = sorted(daemon.run.rglob("*.sock"))
    for namespace in ("../../x", "a/b", "x" * 5000, " "):
        _refuses_namespace(caller, namespace)
    assert sorted(daemon.run.rglob("*.sock")) == before


def _refuses_namespace(caller: Caller, namespace: str) -> None:
    metadata = [("containerd-namespace", namespace)]
    asked = pb.ControllerCreateRequest(sandbox_id="s", options=options())
    code, text = caller.call("Create", asked, metadata=metadata)
    if code is Code.OK:
        code, text = caller.call("Start", pb.ControllerStartRequest(sandbox_id="s"), metadata=metadata)
    caller.ask("Shutdown", sandbox_id="s")
    assert code is Code.INVALID_ARGUMENT, (code, text)


# -- the same at once, too late, too often ----------------------------------------------------------------------------


def test_the_same_at_once(caller: Caller) -> None:
    asked = pb.ControllerCreateRequest(sandbox_id="s", options=options())
    codes = {caller.answer(one)[0] for one in [caller.later("Create", asked) for _ in range(8)]}
    assert Code.OK in codes and codes <= {Code.OK, Code.ALREADY_EXISTS}
    for method in ("Start", "Stop", "Shutdown"):
        message = getattr(pb, METHODS[method].input_type.name)(sandbox_id="s")
        codes = {caller.answer(one)[0] for one in [caller.later(method, message) for _ in range(8)]}
        assert Code.OK in codes, (method, codes)
        assert codes <= {Code.OK, Code.FAILED_PRECONDITION, Code.NOT_FOUND, Code.ALREADY_EXISTS}, (method, codes)


def test_calls_after_the_end(caller: Caller) -> None:
    assert caller.create("s")[0] is Code.OK
    assert caller.ask("Start", sandbox_id="s")[0] is Code.OK
    assert caller.ask("Stop", sandbox_id="s")[0] is Code.OK
    assert caller.ask("Wait", sandbox_id="s")[0] is Code.OK
    assert caller.ask("Start", sandbox_id="s")[0] is Code.FAILED_PRECONDITION
    assert caller.ask("Shutdown", sandbox_id="s")[0] is Code.OK
    for method in ("Start", "Status", "Platform", "Metrics", "Wait"):
        assert caller.ask(method, sandbox_id="s")[0] is Code.NOT_FOUND, method
    for method in ("Stop", "Shutdown"):
        assert caller.ask(method, sandbox_id="s")[0] in (Code.OK, Code.NOT_FOUND), method


def test_thousands_of_open_calls(caller: Caller, daemon: Daemon) -> None:
    """Those that wait end with the pod, whoever has gone in between."""
    assert caller.create("s")[0] is Code.OK
    assert caller.ask("Start", sandbox_id="s")[0] is Code.OK
    asked = pb.ControllerWaitRequest(sandbox_id="s")
    waiting = [caller.later("Wait", asked) for _ in range(2000)]
    with Caller(daemon) as gone:
        for _ in range(2000):
            gone.later("Wait", asked)
        assert gone.ask("Status", sandbox_id="s")[0] is Code.OK
    assert caller.ask("Status", sandbox_id="s")[0] is Code.OK
    assert caller.ask("Stop", sandbox_id="s")[0] is Code.OK
    assert {caller.answer(one)[0] for one in waiting} == {Code.OK}
    assert caller.ask("Shutdown", sandbox_id="s")[0] is Code.OK


def test_a_caller_that_goes_in_the_middle(caller: Caller, daemon: Daemon) -> None:
    """containerd comes back and shuts down what it does not know of."""
    create = pb.ControllerCreateRequest(sandbox_id="s", options=options())
    for wait_s in (0.0, 0.002, 0.01, 0.05):
        with Caller(daemon) as gone:
            gone.later("Create", create)
            gone.later("Start", pb.ControllerStartRequest(sandbox_id="s"))
            time.sleep(wait_s)
    wait_until(
        lambda: caller.ask("Shutdown", sandbox_id="s")[0] is Code.OK and not pods(daemon), what="nothing is left"
    )


def test_many_callers_that_go(caller: Caller, daemon: Daemon) -> None:
    count = lambda: len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))  # noqa: E731
    before = count()
    for _ in range(5):
        with ExitStack() as stack:
            for _ in range(100):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(daemon.run / "sandboxer.sock"))
    wait_until(lambda: count() <= before, what="their connections are closed", timeout_s=TIMEOUT_S)

"""Whoever speaks to the Task service may send anything: it is answered with the right status, within bounded time and
memory, others are served meanwhile, and nothing stays behind."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from drupe.errors import DrupeError
from drupe.rpc.containerd import task_v2_pb2 as task
from drupe.rpc.containerd.mount_pb2 import Mount
from drupe.rpc.containerd.streaming_pb2 import StreamInit
from drupe.rpc.ttrpc.envelope import Code
from drupe.rpc.ttrpc.frames import MAX_DATA_BYTES
from drupe.spec.containerd import ShimDelete, ShimDeleted
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.raw_ttrpc import Raw
from framework.taskcaller import MEBIBYTE, PEER, PROCESS, REFUSALS, end, pods

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

# -- frames -----------------------------------------------------------------------------------------------------------


def test_frames_that_are_none(raw: Raw) -> None:
    refused = [
        (raw.post_data(b"\xff" * 50), Code.INVALID_ARGUMENT),
        (raw.post("Create", b"\xff\xff\xff"), Code.INVALID_ARGUMENT),
        (raw.post("Nope", b""), Code.UNIMPLEMENTED),
        (raw.post("State", b"", service="containerd.task.v9.Task"), Code.UNIMPLEMENTED),
        (raw.post("State", b"", service=""), Code.UNIMPLEMENTED),
        (raw.post_data(b"", stream=2), Code.INVALID_ARGUMENT),
        (raw.post_data(b"", stream=1), Code.INVALID_ARGUMENT),
    ]
    for stream, code in refused:
        assert raw.answer(stream).status.code == code, (stream, code)
    raw.socket.sendall((5).to_bytes(4, "big") + (999).to_bytes(4, "big") + b"\x63\x00" + b"xxxxx")  # of no known kind
    raw.socket.sendall((5).to_bytes(4, "big") + (999).to_bytes(4, "big") + b"\x03\x00" + b"xxxxx")  # of no open stream
    assert raw.call("State", task.StateRequest(id="nobody"))[0] == Code.NOT_FOUND


def test_frames_that_are_too_big(raw: Raw) -> None:
    for size in (MAX_DATA_BYTES + 1, 64 * MEBIBYTE):
        stream = raw._next
        raw._next += 2
        raw.socket.sendall(size.to_bytes(4, "big") + stream.to_bytes(4, "big") + b"\x01\x00")
        for _ in range(size // MEBIBYTE):
            raw.socket.sendall(bytes(MEBIBYTE))
        raw.socket.sendall(bytes(size % MEBIBYTE))
        assert raw.answer(stream).status.code == Code.RESOURCE_EXHAUSTED
    assert raw.call("State", task.StateRequest(id="nobody"))[0] == Code.NOT_FOUND


def test_half_a_frame_and_silence(raw: Raw, address: str) -> None:
    with ExitStack() as stack:
        for size in (1, 9, 10, 400):
            quiet = stack.enter_context(Raw(address))
            quiet.socket.sendall((b"\x00\x3f\xff\xff\x00\x00\x00\x01\x01\x00" + bytes(400))[:size])
        assert raw.call("State", task.StateRequest(id="nobody"))[0] == Code.NOT_FOUND


def test_a_caller_that_never_reads(raw: Raw, address: str) -> None:
    with Raw(address) as deaf:
        deaf.socket.settimeout(1.0)
        with pytest.raises(TimeoutError):
            for _ in range(200_000):
                deaf.post("State", task.StateRequest(id="n" * 1000))
        began = time.monotonic()
        assert raw.call("State", task.StateRequest(id="nobody"))[0] == Code.NOT_FOUND
        assert time.monotonic() - began < 5.0


def test_thousands_of_open_calls(raw: Raw, address: str, bundle: Callable[..., Path]) -> None:
    assert raw.create(bundle(), "t") == (Code.OK, "")
    raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
    with ExitStack() as stack:
        connections = [stack.enter_context(Raw(address)) for _ in range(4)]
        waiting = [[one.post("Wait", task.WaitRequest(id="t")) for _ in range(1500)] for one in connections]
        refused = [
            one.answer(stream) for one, streams in zip(connections, waiting, strict=True) for stream in streams[1024:]
        ]
        assert {answer.status.code for answer in refused} == {Code.RESOURCE_EXHAUSTED}
        raw.ask("Kill", task.KillRequest(id="t", signal=9), Empty)
        for one, streams in zip(connections, waiting, strict=True):
            for stream in streams[:1024]:
                answer = one.answer(stream)
                assert task.WaitResponse.FromString(answer.payload).exit_status == 137
    end(raw)


def test_calls_whose_time_is_over(raw: Raw, bundle: Callable[..., Path]) -> None:
    """What changes something goes on: the next call sees it."""
    asked = task.CreateTaskRequest(id="t", bundle=str(bundle()))
    answer = raw.answer(raw.post("Create", asked, timeout_s=0.000001))
    assert answer.status.code == Code.DEADLINE_EXCEEDED
    wait_until(lambda: raw.call("State", task.StateRequest(id="t"))[0] == Code.OK, what="it is made")
    raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
    assert raw.answer(raw.post("Wait", task.WaitRequest(id="t"), timeout_s=0.1)).status.code == Code.DEADLINE_EXCEEDED
    end(raw)


# -- bundles ----------------------------------------------------------------------------------------------------------

WRONG_CONFIGS: dict[str, tuple[bytes, Code]] = {
    "empty": (b"", Code.INVALID_ARGUMENT),
    "no JSON": (b"{", Code.INVALID_ARGUMENT),
    "a list": (b"[]", Code.INVALID_ARGUMENT),
    "null": (b"null", Code.INVALID_ARGUMENT),
    "not UTF-8": (b'{"ociVersion":"\xff"}', Code.INVALID_ARGUMENT),
    "deep": (b"[" * 100_000, Code.INVALID_ARGUMENT),
    "deep within": (b'{"annotations":' + b'{"a":' * 50_000, Code.INVALID_ARGUMENT),
    "too long": (b'{"ociVersion":"' + b"1" * (5 << 20) + b'"}', Code.INVALID_ARGUMENT),
}
WRONG_FIELDS: dict[str, dict[str, Any]] = {
    "version": {"ociVersion": 7},
    "args of numbers": {"process": {"args": [1, 2]}},
    "no args": {"process": {"args": []}},
    "an id that is none": {"process": {"user": {"uid": -1, "gid": 0}}},
    "a NUL": {"process": {"args": ["a\0b"]}},
    "a relative directory": {"process": {"cwd": "here"}},
    "a mount without a place": {"mounts": [{"destination": "relative"}]},
    "a bind of nothing": {
        "mounts": [{"destination": "/mnt", "type": "bind", "source": "/no/such", "options": ["bind"]}]
    },
    "a bind of a NUL": {"mounts": [{"destination": "/mnt", "type": "bind", "source": "/\0", "options": ["bind"]}]},
    "mounts that are none": {"mounts": {"a": "b"}},
    "no root": {"root": {"path": "nowhere"}},
    "a root that is a file": {"root": {"path": "config.json"}},
    "a root with a NUL": {"root": {"path": "a\0"}},
    "a namespace of no kind": {"linux": {"namespaces": [{"type": "nope"}]}},
    "a namespace from nowhere": {"linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/no/such"}]}},
    "a namespace that is a file": {
        "linux": {"namespaces": [{"type": "mount"}, {"type": "network", "path": "/etc/passwd"}]}
    },
    "a cgroup above": {"linux": {"cgroupsPath": "/../../outside"}},
    "a cgroup with a NUL": {"linux": {"cgroupsPath": "/a\0b"}},
    "a slice that is none": {"linux": {"cgroupsPath": "a/b:c:d"}},
    "a negative limit": {"linux": {"resources": {"memory": {"limit": -5}}}},
    "a limit of text": {"linux": {"resources": {"pids": {"limit": "many"}}}},
    "a hook of nothing": {"hooks": {"createRuntime": [{"path": "/no/such"}]}},
    "a hook that fails": {"hooks": {"createRuntime": [{"path": "/bin/false", "args": ["false"]}]}},
    "a pod that is not here": {
        "annotations": {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "nobody"}
    },
    "a kind of no name": {"annotations": {"drupe.kind": "nope"}},
}


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_a_config_that_cannot_be_read(raw: Raw, bundle: Callable[..., Path], name: str) -> None:
    data, expected = WRONG_CONFIGS[name]
    path = bundle()
    (path / "config.json").write_bytes(data)
    code, text = raw.create(path, "t")
    assert code == expected and str(path) in text and "\n" not in text and len(text) < 1000, (code, text[:1000])


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_a_config_with_something_wrong(raw: Raw, bundle: Callable[..., Path], name: str) -> None:
    code, text = raw.create(bundle(**WRONG_FIELDS[name]), "t")
    assert code in REFUSALS and "\n" not in text and len(text) < 1000, (code, text[:1000])
    assert raw.call("State", task.StateRequest(id="t"))[0] == Code.NOT_FOUND
    assert not [place for place in Path("/sys/fs/cgroup").glob("*/*outside*")]


def test_bundles_that_are_none(raw: Raw, bundle: Callable[..., Path], tmp_path: Path) -> None:
    place = bundle()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    fifo, directory = tmp_path / "fifo", tmp_path / "directory"
    for path in (fifo, directory):
        path.mkdir()
    os.mkfifo(fifo / "config.json")
    (directory / "config.json").mkdir()
    wrong = ["", "relative", "/no/such", f"{place}\0", "/" + "x" * 5000, str(tmp_path / "loop"), f"{place}/config.json",
             str(fifo), str(directory), "/proc/self/mem", "\u202e"]  # fmt: skip
    for path in wrong:
        code, text = raw.create(path, "t")
        assert code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND) and "\n" not in text, (path[:100], code, text[:500])


WRONG_ROOTS = {
    "no type": Mount(),
    "a type of no name": Mount(type="nope", source="x"),
    "a bind of nothing": Mount(type="bind", source="/no/such"),
    "a bind of a NUL": Mount(type="bind", source="/\0"),
    "layers of nothing": Mount(type="overlay", source="overlay", options=["lowerdir=/no/such"]),
    "a long option": Mount(type="overlay", source="overlay", options=["x" * 10_000]),
    "a place outside": Mount(type="bind", source="/etc", target="../../../../../../../mnt", options=["rbind"]),
}


@pytest.mark.parametrize("name", WRONG_ROOTS)
def test_roots_that_are_none(raw: Raw, bundle: Callable[..., Path], name: str) -> None:
    code, text = raw.create(bundle(), "t", rootfs=[WRONG_ROOTS[name]])
    assert code in REFUSALS and "\n" not in text, (code, text)


def test_ids_that_are_none(raw: Raw, bundle: Callable[..., Path]) -> None:
    for name in ("", "a/b", "../../x", "a\nb", "x" * 5000, "\0"):
        code, text = raw.create(bundle(), name)
        assert code == Code.INVALID_ARGUMENT and "\n" not in text, (name, code, text)


def test_other_calls_with_something_wrong(raw: Raw, bundle: Callable[..., Path]) -> None:
    assert raw.create(bundle(), "t") == (Code.OK, "")
    assert raw.create(bundle(), "t")[0] == Code.ALREADY_EXISTS
    spec = {"args": ["true"], "cwd": "/"}

    def exec_(spec: Any, **fields: Any) -> Code:
        value = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
        asked = {"id": "t", "exec_id": "e", "spec": AnyMessage(type_url=PROCESS, value=value), **fields}
        return raw.call("Exec", task.ExecProcessRequest(**asked))[0]

    assert exec_(spec) == Code.FAILED_PRECONDITION  # before the start
    raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
    assert raw.call("Start", task.StartRequest(id="t"))[0] == Code.FAILED_PRECONDITION
    for wrong in (
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        {"args": []},
        {"args": [1]},
        {"args": ["a\0"]},
        {},
        {"args": ["a"], "cwd": 7},
    ):
        assert exec_(wrong) == Code.INVALID_ARGUMENT, wrong
    assert exec_(spec, exec_id="") == Code.INVALID_ARGUMENT
    for signal in (-1, 0, 65, 10**6):
        code = raw.call("Kill", task.KillRequest(id="t", signal=signal % 2**32))[0]
        assert code in (Code.INVALID_ARGUMENT, Code.OK), signal
    wrong_limits = (b"", b"{", b'{"memory":{"limit":"x"}}', b"[" * 100_000, b'{"memory":{"limit":-7}}')
    for value in wrong_limits:
        asked = task.UpdateTaskRequest(id="t", resources=AnyMessage(type_url="x", value=value))
        assert raw.call("Update", asked)[0] == Code.INVALID_ARGUMENT, value
    for path in ("", "relative", "/no/such/place", "\0"):
        code = raw.call("Checkpoint", task.CheckpointTaskRequest(id="t", path=path))[0]
        assert code in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED), path
    assert raw.call("Delete", task.DeleteRequest(id="t"))[0] == Code.FAILED_PRECONDITION
    for method, message in (("Kill", task.KillRequest), ("Wait", task.WaitRequest), ("Delete", task.DeleteRequest)):
        assert raw.call(method, message(id="t", exec_id="nobody"))[0] == Code.NOT_FOUND
    end(raw)


# -- streams ----------------------------------------------------------------------------------------------------------


def test_streams_that_are_none(raw: Raw, bundle: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "socket").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        wrong = ["/no/such", str(tmp_path), "/etc/passwd", "/\0", "nope:///x", "binary:///no/such", "x" * 5000, "file://",
                 str(tmp_path / "socket"), "/dev/null"]  # fmt: skip
        for path in wrong:
            code, text = raw.create(bundle(), "t", stdout=path)
            assert code in REFUSALS and "\n" not in text, (path[:100], code, text[:500])
            code, text = raw.create(bundle(), "t", stdin=path)
            assert code in REFUSALS and "\n" not in text, (path[:100], code, text[:500])


def test_fifos_that_nobody_opens(raw: Raw, bundle: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("in", "out", "err"):
        os.mkfifo(tmp_path / name)
    fifos = {f"std{name}": str(tmp_path / name) for name in ("in", "out", "err")}
    assert raw.create(bundle("sh", "-c", "cat; yes"), "t", **fifos) == (Code.OK, "")
    raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
    spec = AnyMessage(type_url=PROCESS, value=json.dumps({"args": ["sh", "-c", "cat; yes"], "cwd": "/"}).encode())
    raw.ask("Exec", task.ExecProcessRequest(id="t", exec_id="e", spec=spec, **fifos), Empty)
    raw.ask("Start", task.StartRequest(id="t", exec_id="e"), task.StartResponse)
    raw.ask("CloseIO", task.CloseIORequest(id="t", stdin=True), Empty)
    raw.ask("CloseIO", task.CloseIORequest(id="t", exec_id="e", stdin=True), Empty)
    end(raw)


def test_a_fifo_that_goes_before_it_is_opened(
    raw: Raw, address: str, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """A containerd that has gone takes its directory of FIFOs along."""
    assert raw.create(bundle(), "t") == (Code.OK, "")
    raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
    os.mkfifo(tmp_path / "in")
    spec = AnyMessage(type_url=PROCESS, value=json.dumps({"args": ["cat"], "cwd": "/"}).encode())
    raw.ask("Exec", task.ExecProcessRequest(id="t", exec_id="e", spec=spec, stdin=str(tmp_path / "in")), Empty)
    stream = raw.post("Start", task.StartRequest(id="t", exec_id="e"))
    time.sleep(0.1)
    (tmp_path / "in").unlink()
    with Raw(address) as other:
        assert other.call("State", task.StateRequest(id="t"))[0] == Code.OK
        raw.answer(stream)  # one way or the other
        assert other.call("State", task.StateRequest(id="t"))[0] == Code.OK
    end(raw)


STREAMING = "containerd.services.streaming.v1.Streaming"


def stream(id_: str) -> AnyMessage:
    """The first message of a stream."""
    return AnyMessage(
        type_url="containerd.services.streaming.v1.StreamInit", value=StreamInit(id=id_).SerializeToString()
    )


def test_streams_that_nobody_calls_for(raw: Raw, address: str, bundle: Callable[..., Path]) -> None:
    for wrong in (AnyMessage(type_url="x"), stream(""), AnyMessage(type_url=stream("").type_url, value=b"\xff")):
        assert raw.call("Stream", wrong, service=STREAMING)[0] == Code.INVALID_ARGUMENT
    named = f"ttrpc+unix://{address}?streaming_id=one"
    assert raw.create(bundle(), "t", stdout=named, stderr=named)[0] == Code.ALREADY_EXISTS
    assert raw.create(bundle("/nope"), "t", stdout=named)[0] != Code.OK
    assert raw.create(bundle("sh", "-c", "yes"), "t", stdout=named, stdin=named.replace("one", "two")) == (Code.OK, "")
    raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
    end(raw)


def test_a_stream_whose_caller_does_not_read(raw: Raw, address: str, bundle: Callable[..., Path]) -> None:
    with Raw(address) as deaf:
        deaf.post("Stream", stream("deaf"), service=STREAMING)
        uri = f"ttrpc+unix://{address}?streaming_id=deaf"
        assert raw.create(bundle("sh", "-c", "yes"), "t", stdout=uri) == (Code.OK, "")
        raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
        time.sleep(0.5)  # it writes all the while
        assert raw.call("State", task.StateRequest(id="t"))[0] == Code.OK
        end(raw)


def test_a_task_that_is_killed_before_its_start_lets_go_of_its_streams(
    raw: Raw, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """containerd comes back, ends what it had not started, and waits for the end of the output before it deletes."""
    for name in ("out", "err"):
        os.mkfifo(tmp_path / name)
    readers = [os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK) for name in ("out", "err")]
    assert raw.create(bundle(), "t", stdout=str(tmp_path / "out"), stderr=str(tmp_path / "err")) == (Code.OK, "")
    raw.ask("Kill", task.KillRequest(id="t", signal=9), Empty)
    assert raw.ask("Wait", task.WaitRequest(id="t"), task.WaitResponse).exit_status == 137
    for reader in readers:
        wait_until(lambda fd=reader: _is_over(fd), what="its output ends")  # type: ignore[misc]
        os.close(reader)
    raw.ask("Delete", task.DeleteRequest(id="t"), task.DeleteResponse)


def _is_over(fd: int) -> bool:
    with suppress(BlockingIOError):
        return os.read(fd, 100) == b""
    return False


# -- callers that go --------------------------------------------------------------------------------------------------


def test_a_caller_that_goes_in_the_middle(raw: Raw, daemon: Daemon, address: str, bundle: Callable[..., Path]) -> None:
    """containerd's shim is called to clean up after it, whatever had been reached."""
    path = bundle()
    for wait_s in (0.0, 0.002, 0.01, 0.05):
        with Raw(address) as gone:
            gone.post("Create", task.CreateTaskRequest(id="t", bundle=str(path)))
            gone.post("Start", task.StartRequest(id="t"))
            time.sleep(wait_s)
        _delete(daemon)
    wait_until(lambda: _delete(daemon) and not pods(daemon), what="nothing is left")


def _delete(daemon: Daemon) -> bool:
    with daemon.client() as client, suppress(DrupeError):
        done: ShimDeleted = client.call("containerd.delete", ShimDelete(id="t", **PEER), timeout_s=20)
        return done.exit_status == 137
    return False


def test_many_callers_that_go(raw: Raw, daemon: Daemon, address: str) -> None:
    count = lambda: len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))  # noqa: E731
    assert raw.call("State", task.StateRequest(id="nobody"))[0] == Code.NOT_FOUND  # so that `raw` itself is accepted
    before = count()
    for _ in range(10):
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(Raw(address)).post("State", task.StateRequest(id="nobody"))
    wait_until(lambda: count() <= before, what="their connections are closed")

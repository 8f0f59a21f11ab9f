"""Calls of the Task service that come at once, too late or too often, and envelopes that nobody sends: each is answered
with the right status, nobody waits for ever, and nothing stays behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from drupe.rpc.containerd import sandbox_shim_pb2 as pb
from drupe.rpc.containerd import task_v2_pb2 as task
from drupe.rpc.cri.api_pb2 import PodSandboxConfig
from drupe.rpc.ttrpc.envelope import Code, request
from drupe.rpc.ttrpc.envelope_pb2 import Request
from drupe.rpc.ttrpc.frames import Frame, Kind, encode
from drupe.sandboxers.kinds import KINDS
from drupe.services.doctor import why_not
from drupe.spec.containerd import ShimDelete
from framework.daemon import Daemon
from framework.raw_ttrpc import SERVICE, Raw
from framework.taskcaller import PEER, PROCESS, REFUSALS, end, pods

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


# -- the same at once, too late, too often ----------------------------------------------------------------------------


def test_the_same_task_at_once(raw: Raw, bundle: Callable[..., Path]) -> None:
    path = str(bundle())
    made = [raw.post("Create", task.CreateTaskRequest(id="t", bundle=path)) for _ in range(8)]
    codes = sorted(Code(raw.answer(stream).status.code) for stream in made)
    assert codes == [Code.OK] + 7 * [Code.ALREADY_EXISTS], codes
    begun = [raw.post("Start", task.StartRequest(id="t")) for _ in range(8)]
    codes = sorted(Code(raw.answer(stream).status.code) for stream in begun)
    assert codes == [Code.OK] + 7 * [Code.FAILED_PRECONDITION], codes
    end(raw)


def test_the_same_exec_at_once(raw: Raw, bundle: Callable[..., Path]) -> None:
    assert raw.create(bundle(), "t") == (Code.OK, "")
    raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
    spec = AnyMessage(type_url=PROCESS, value=json.dumps({"args": ["sleep", "1000"], "cwd": "/"}).encode())
    asked = task.ExecProcessRequest(id="t", exec_id="e", spec=spec)
    codes = sorted(Code(raw.answer(one).status.code) for one in [raw.post("Exec", asked) for _ in range(8)])
    assert codes == [Code.OK] + 7 * [Code.ALREADY_EXISTS], codes
    begun = [raw.post("Start", task.StartRequest(id="t", exec_id="e")) for _ in range(8)]
    codes = sorted(Code(raw.answer(one).status.code) for one in begun)
    assert codes == [Code.OK] + 7 * [Code.FAILED_PRECONDITION], codes
    assert raw.call("Delete", task.DeleteRequest(id="t", exec_id="e"))[0] == Code.FAILED_PRECONDITION
    waiting = raw.post("Wait", task.WaitRequest(id="t", exec_id="e"))
    raw.ask("Kill", task.KillRequest(id="t", exec_id="e", signal=9), Empty)
    assert task.WaitResponse.FromString(raw.answer(waiting).payload).exit_status == 137
    gone = [raw.post("Delete", task.DeleteRequest(id="t", exec_id="e")) for _ in range(8)]
    codes = sorted(Code(raw.answer(one).status.code) for one in gone)
    assert codes == [Code.OK] + 7 * [Code.NOT_FOUND], codes
    for name in ("x" * 10_000, "a/b", "../x", "a\0", ""):
        code = raw.call("Exec", task.ExecProcessRequest(id="t", exec_id=name, spec=spec))[0]
        assert code == Code.INVALID_ARGUMENT, (name[:20], code)
    end(raw)


def test_a_task_that_is_deleted_while_others_wait(raw: Raw, address: str, bundle: Callable[..., Path]) -> None:
    """Before its start, and after its end; also those who wait for an exec that never began."""
    spec = AnyMessage(type_url=PROCESS, value=json.dumps({"args": ["true"], "cwd": "/"}).encode())
    for starts in (False, True):
        assert raw.create(bundle(), "t") == (Code.OK, "")
        with Raw(address) as other:
            waiting = [other.post("Wait", task.WaitRequest(id="t")) for _ in range(3)]
            if starts:
                raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
                raw.ask("Exec", task.ExecProcessRequest(id="t", exec_id="e", spec=spec), Empty)
                waiting.append(other.post("Wait", task.WaitRequest(id="t", exec_id="e")))
                assert other.call("State", task.StateRequest(id="t", exec_id="e"))[0] == Code.OK
                raw.ask("Kill", task.KillRequest(id="t", signal=9), Empty)
                raw.ask("Wait", task.WaitRequest(id="t"), task.WaitResponse)
            raw.ask("Delete", task.DeleteRequest(id="t"), task.DeleteResponse)
            for stream in waiting:
                assert Code(other.answer(stream).status.code) in (Code.OK, Code.NOT_FOUND)


def test_terminals_and_inputs_that_are_not_there(raw: Raw, bundle: Callable[..., Path]) -> None:
    """As runc's shim has it: nothing to be resized or closed is no failure, a process that is not there is one."""
    assert raw.create(bundle(), "t") == (Code.OK, "")
    for started in (False, True):
        if started:
            raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
        for size in (0, 1, 2**32 - 1):
            code = raw.call("ResizePty", task.ResizePtyRequest(id="t", width=size, height=size))[0]
            assert code in (Code.OK, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION), (started, size, code)
        for _ in range(2):
            raw.ask("CloseIO", task.CloseIORequest(id="t", stdin=True), Empty)
            raw.ask("CloseIO", task.CloseIORequest(id="t"), Empty)
    asked = {"id": "t", "exec_id": "nobody"}
    assert raw.call("ResizePty", task.ResizePtyRequest(width=1, height=1, **asked))[0] == Code.NOT_FOUND
    assert raw.call("CloseIO", task.CloseIORequest(stdin=True, **asked))[0] == Code.NOT_FOUND
    raw.ask("Kill", task.KillRequest(id="t", signal=9), Empty)
    raw.ask("Wait", task.WaitRequest(id="t"), task.WaitResponse)
    assert raw.call("CloseIO", task.CloseIORequest(id="t", stdin=True))[0] == Code.OK
    for method, message in (("Pause", task.PauseRequest), ("Resume", task.ResumeRequest)):
        assert raw.call(method, message(id="t"))[0] == Code.FAILED_PRECONDITION, method
    end(raw)


@pytest.mark.parametrize("is_closed", [False, True], ids=["left", "closed"])
@pytest.mark.parametrize("kind", ["runc", "gvisor"])
def test_an_input_that_ended_before_the_start(
    raw: Raw, bundle: Callable[..., Path], tmp_path: Path, kind: str, is_closed: bool
) -> None:
    """As Docker's for a short input: whoever is started later reads all of it, and its end."""
    if cause := why_not(KINDS[kind], cache=tmp_path / "doctor.json", named=True):
        pytest.skip(f"{kind} cannot run here: {cause}")
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    path = bundle("cat", annotations={"drupe.kind": kind})
    with (tmp_path / "out").open("r+b", buffering=0) as output:
        assert raw.create(path, "t", stdin=f"{tmp_path}/in", stdout=f"{tmp_path}/out") == (Code.OK, "")
        (tmp_path / "in").write_bytes(b"piped")
        if is_closed:
            raw.ask("CloseIO", task.CloseIORequest(id="t", stdin=True), Empty)
        raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
        raw.ask("Wait", task.WaitRequest(id="t"), task.WaitResponse)
        assert output.read(5) == b"piped"
    end(raw)


def test_calls_after_shutdown(raw: Raw, bundle: Callable[..., Path]) -> None:
    """It is not the end of a daemon that others use, nor of a task that runs."""
    for now in (False, True):
        raw.ask("Shutdown", task.ShutdownRequest(id="nobody", now=now), Empty)
    assert raw.create(bundle(), "t") == (Code.OK, "")
    raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
    raw.ask("Shutdown", task.ShutdownRequest(id="t", now=True), Empty)
    assert raw.call("State", task.StateRequest(id="t"))[0] == Code.OK
    end(raw)
    assert raw.call("State", task.StateRequest(id="t"))[0] == Code.NOT_FOUND


def test_checkpoints_that_are_none(raw: Raw, bundle: Callable[..., Path], tmp_path: Path) -> None:
    """This node's runc kind has crun, which cannot: it says so, and nothing is left of what was to go on."""
    for path in (tmp_path, "/no/such", "relative", "/\0"):
        code, text = raw.create(bundle(), "t", checkpoint=str(path))
        assert code in REFUSALS and "\n" not in text, (path, code, text)
        assert raw.call("State", task.StateRequest(id="t"))[0] == Code.NOT_FOUND
    assert raw.create(bundle(), "t") == (Code.OK, "")
    raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
    wrong = AnyMessage(type_url="containerd.runc.v1.CheckpointOptions", value=b"\xff")
    asked = task.CheckpointTaskRequest(id="t", path=str(tmp_path), options=wrong)
    assert raw.call("Checkpoint", asked)[0] == Code.INVALID_ARGUMENT
    code, text, _ = raw.call("Checkpoint", task.CheckpointTaskRequest(id="t", path=str(tmp_path)))
    assert code == Code.UNIMPLEMENTED and "CRIU" in text
    end(raw)


# -- odd envelopes ----------------------------------------------------------------------------------------------------


def test_bytes_one_by_one(raw: Raw, address: str) -> None:
    """A slow caller is answered in the end, and nobody waits for it."""
    data = request(SERVICE, "State", task.StateRequest(id="nobody").SerializeToString(), timeout_s=None, metadata={})
    frame = encode(Frame(1, Kind.REQUEST, 0, data))
    with ExitStack() as stack:
        slow = [stack.enter_context(Raw(address)) for _ in range(20)]
        for byte in frame:
            for one in slow:
                one.socket.sendall(bytes([byte]))
            assert raw.call("State", task.StateRequest(id="nobody"))[0] == Code.NOT_FOUND
        for one in slow:
            assert one.answer(1).status.code == Code.NOT_FOUND


def test_a_stream_id_that_is_in_use(raw: Raw, address: str, bundle: Callable[..., Path]) -> None:
    assert raw.create(bundle(), "t") == (Code.OK, "")
    raw.ask("Start", task.StartRequest(id="t"), task.StartResponse)
    with Raw(address) as odd:
        stream = odd.post("Wait", task.WaitRequest(id="t"))
        data = request(SERVICE, "State", b"", timeout_s=None, metadata={})
        for _ in range(100):
            odd.post_data(data, stream=stream)
            assert odd.answer(stream).status.code == Code.INVALID_ARGUMENT
        assert odd.call("State", task.StateRequest(id="t"))[0] == Code.OK
        end(raw)
        with suppress(TimeoutError, ConnectionError):  # whose answer it was is not clear any more
            odd.socket.settimeout(1.0)
            odd.answer(stream)
    assert raw.call("State", task.StateRequest(id="t"))[0] == Code.NOT_FOUND


def test_metadata_and_deadlines_without_measure(raw: Raw) -> None:
    asked = task.StateRequest(id="nobody").SerializeToString()
    heavy = {f"k{number}": "v" * 1000 for number in range(3000)}
    answer = raw.answer(raw.post_data(request(SERVICE, "State", asked, timeout_s=None, metadata=heavy)))
    assert answer.status.code == Code.NOT_FOUND
    for nano in (-1, -(2**63), 2**63 - 1):
        envelope = Request(service=SERVICE, method="State", payload=asked, timeout_nano=nano)
        code = raw.answer(raw.post_data(envelope.SerializeToString())).status.code
        assert code in (Code.NOT_FOUND, Code.DEADLINE_EXCEEDED), nano
    for service, method in (("x" * 1_000_000, "State"), (SERVICE, "x" * 1_000_000), (SERVICE, "\n\0")):
        answer = raw.answer(raw.post_data(Request(service=service, method=method).SerializeToString()))
        assert answer.status.code == Code.UNIMPLEMENTED and len(answer.status.message) < 4096
        assert "\n" not in answer.status.message


# -- sandboxes that a shim serves -------------------------------------------------------------------------------------

SANDBOX = "containerd.runtime.sandbox.v1.Sandbox"


def test_a_sandbox_whose_shim_is_cleaned_up_after(raw: Raw, daemon: Daemon) -> None:
    """When its connection has ended, containerd calls the shim's `delete` for it, and nothing else."""
    config = PodSandboxConfig(metadata={"name": "s", "uid": "u", "namespace": "n"})
    options = AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=config.SerializeToString())
    asked = pb.CreateSandboxRequest(sandbox_id="s", options=options)
    assert raw.call("CreateSandbox", asked, service=SANDBOX)[:2] == (Code.OK, "")
    assert raw.call("StartSandbox", pb.StartSandboxRequest(sandbox_id="s"), service=SANDBOX)[:2] == (Code.OK, "")
    assert len(pods(daemon)) == 1
    with daemon.client() as client:
        for id_, stays in (("other", 1), ("s", 0), ("s", 0)):
            client.call("containerd.delete", ShimDelete(id=id_, **PEER), timeout_s=60)
            assert len(pods(daemon)) == stays

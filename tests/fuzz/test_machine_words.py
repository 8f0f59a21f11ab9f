"""Words and messages of what a guest may have in its hands: its agent, its monitor, its virtiofsd. Whatever they say,
errors are one readable line, numbers can be told on, and a log holds what was written."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from qemu.qmp import ExecuteError
from qemu.qmp import Message as QmpMessage
from qemu.qmp.models import ErrorResponse

from drupe.errors import DrupeError, HelperFailed
from drupe.hypervisors import qmp, rest, uml
from drupe.hypervisors.qmp import understood
from drupe.rpc.containerd import cgroup2_metrics_pb2 as metrics_pb
from drupe.rpc.containerd import task_v3_pb2 as tasks_pb
from drupe.rpc.guest import guest_pb2 as pb
from drupe.rpc.ttrpc.envelope import error_of
from drupe.rpc.ttrpc.envelope_pb2 import Status
from drupe.sandboxers.vm import counters, ends
from drupe.sandboxers.vm.agent import Agent
from drupe.sandboxers.vm.console import why
from drupe.sandboxers.vm.failures import explain, gone
from drupe.sandboxers.vm.logs import LogWriter, Place
from drupe.sandboxers.vm.snapshots import renew
from drupe.spec.container import LogSpec

MAX_CHARS = 2500  # a message and its cause
ESCAPES = st.sampled_from(["\x1b]0;owned\x07", "\x1b[2J", "\r", "\n", "\x9b31m", "\u202e", "\0", "crun", "not found"])
WORDS = st.lists(st.text(max_size=30) | ESCAPES, max_size=8).map("".join) | st.integers(0, 20000).map("x".__mul__)


def is_readable(error: BaseException) -> None:
    assert str(error).isprintable(), ascii(str(error))
    assert len(str(error)) < MAX_CHARS


async def nowhere() -> Any:
    raise OSError


@settings(max_examples=100)
@given(st.integers(1, 2**31 - 1), WORDS, WORDS)
def test_errors_of_an_agent(code: int, words: str, path: str) -> None:
    agent = Agent(nowhere)
    with pytest.raises(DrupeError) as caught, agent._checked():
        raise error_of(Status(code=code, message=words))
    is_readable(caught.value)
    is_readable(explain(caught.value, {"args": ["sh"], "cwd": "/"}))
    is_readable(gone(caught.value))


@settings(max_examples=100)
@given(WORDS, st.integers(100, 999), st.binary(max_size=300))
def test_errors_of_a_monitor(words: str, status: int, body: bytes) -> None:
    said = QmpMessage({"error": {"class": words, "desc": words}})
    with pytest.raises(DrupeError) as caught, qmp._translated("stop", 1.0):
        raise ExecuteError(ErrorResponse(dict(said)), QmpMessage({"execute": "stop"}), said)
    is_readable(caught.value)
    with pytest.raises(HelperFailed) as caught, understood():
        raise KeyError(words)
    is_readable(caught.value)
    for content in (body, words.encode(errors="replace")):
        assert rest._words(status, content).isprintable()


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 2**32 - 1), WORDS), max_size=5))
def test_a_management_console_that_says_anything(answers: list[tuple[int, int, int, str]]) -> None:
    async def ask(home: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
            (home / "m").mkdir()
            theirs.bind(str(home / "m/mconsole"))
            asking = asyncio.create_task(uml.Mconsole(home).call("config ssl0", timeout_s=0.2))
            await asyncio.sleep(0)
            _, _, _, caller = theirs.recvmsg(4096)
            for failed, more, length, words in answers:
                with contextlib.suppress(OSError):
                    head = struct.pack("=III", failed, more, length)
                    theirs.sendto(head + words.encode(errors="replace"), socket.MSG_DONTWAIT, caller)
            try:
                await asking
            except DrupeError as error:
                is_readable(error)

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(ask(Path(name)))


@settings(max_examples=100)
@given(WORDS, st.binary(max_size=4000))
def test_the_end_of_a_machine(end: str, console: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "console.log"
        path.write_bytes(console)
        assert why(end, path).isprintable() and len(why(end, path)) < MAX_CHARS


# -- messages of the right type with anything in them -----------------------------------------------------------------

NUMBERS = {
    Field.TYPE_DOUBLE: st.floats(),
    Field.TYPE_BOOL: st.booleans(),
    Field.TYPE_UINT32: st.integers(0, 2**32 - 1),
    Field.TYPE_UINT64: st.integers(0, 2**64 - 1),
    Field.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    Field.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    Field.TYPE_ENUM: st.integers(-(2**31), 2**31 - 1),
    Field.TYPE_BYTES: st.binary(max_size=40),
    Field.TYPE_STRING: WORDS.map(lambda text: text.encode(errors="replace").decode()),
}


@st.composite
def filled(draw: st.DrawFn, kind: type[Message], depth: int = 3) -> Message:
    """A message of that type with about half of its fields, of any value."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        if field.message_type is None:
            some = draw(st.lists(NUMBERS[field.type], min_size=1, max_size=3))
            if isinstance(held := getattr(message, field.name), bool | int | float | str | bytes):
                setattr(message, field.name, some[0])
            else:
                held.extend(some)
        elif depth and not field.message_type.GetOptions().map_entry:
            held = getattr(message, field.name)
            inner = draw(filled(field.message_type._concrete_class, depth - 1))
            held.add().CopyFrom(inner) if hasattr(held, "add") else held.CopyFrom(inner)
    return message


def told(something: object) -> None:
    """It can be told on, in both forms, and is read back."""
    assert msgspec.json.decode(msgspec.json.encode(something)) is not None
    msgspec.msgpack.encode(something)


@settings(max_examples=40)
@given(st.data())
def test_messages_of_the_right_type(data: st.DataObject) -> None:
    state = data.draw(filled(tasks_pb.StateResponse))
    told(ends.of_state(state))  # type: ignore[arg-type]
    told(ends.of_event(data.draw(filled(pb.Exit))))  # type: ignore[arg-type]
    process = counters.process_info(data.draw(filled(pb.Process)))  # type: ignore[arg-type]
    told(process)
    assert process.state.isprintable() and process.command.isprintable() and process.user.isprintable()
    packed = tasks_pb.StatsResponse()
    packed.stats.value = data.draw(filled(metrics_pb.Metrics)).SerializeToString()
    stats = counters.stats_of(packed.stats)
    told(stats)
    assert all(value >= 0 for value in msgspec.to_builtins(stats).values() if isinstance(value, int))
    with contextlib.suppress(DrupeError):
        asyncio.run(renew(Answering(data.draw(filled(pb.RenewResponse))), pb.RenewRequest()))  # type: ignore[arg-type]


class Answering:
    """A pod whose agent has one answer for everything."""

    def __init__(self, answer: Message) -> None:
        self.agent = self
        self._answer = answer

    async def guest(self, *_: object, **__: object) -> Message:
        return self._answer


# -- output -----------------------------------------------------------------------------------------------------------

CHUNKS = st.lists(
    st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=60) | st.integers(1, 40000).map(b"y".__mul__)),
    max_size=10,
)


@settings(max_examples=40)
@given(CHUNKS, st.sets(st.integers(0, 9)))
def test_output_is_logged_whole_whatever_it_is_and_whoever_writes(
    chunks: list[tuple[str, bytes]], ends: set[int]
) -> None:
    """Also when another daemon goes on with it. What was written and not noted comes again, and is there once."""
    with tempfile.TemporaryDirectory() as name:
        log, place = LogSpec(path=f"{name}/log", driver="cri"), Path(name) / "place"
        known = Place()
        writer = LogWriter(log, known)
        known.write(place)
        for number, (stream, data) in enumerate(chunks):
            writer.write(stream, data)
            if number in ends:  # killed before it was noted
                writer.close()
                known = Place.read(place) or Place()
                writer = LogWriter(log, known)
                writer.write(stream, data)
            known.offsets[stream] = known.offsets.get(stream, 0) + len(data)
            known.write(place)
        writer.end()
        for stream in ("stdout", "stderr"):
            whole = b"".join(data for which, data in chunks if which == stream)
            assert logged(Path(log.path).read_bytes(), stream) == whole.removesuffix(b"\n")


def logged(log: bytes, stream: str) -> bytes:
    """One stream of a CRI log, without its last newline."""
    said = b""
    for line in log.split(b"\n")[:-1]:
        stamp, which, tag, data = line.split(b" ", 3)
        assert re.fullmatch(rb"[0-9T:.Z-]+", stamp)
        if which == stream.encode():
            said += data + (b"\n" if tag == b"F" else b"")
    return said.removesuffix(b"\n")


def test_a_log_is_rotated_when_it_is_full_and_not_before(tmp_path: Path) -> None:
    log, place = LogSpec(path=f"{tmp_path}/log", driver="cri", max_bytes=1000, max_files=3), Place()
    writer = LogWriter(log, place)
    for number in range(100):
        writer.write("stdout", b"line %d\n" % number)
        place.offsets["stdout"] = number
    writer.end()
    kept = b"".join((tmp_path / name).read_bytes() for name in ("log.2", "log.1", "log"))
    assert len(kept) > 2000, "two full ones and what came after"
    assert logged(kept, "stdout").endswith(b"line 98\nline 99")

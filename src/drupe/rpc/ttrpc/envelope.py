"""Requests and responses as frames carry them: metadata, time limits, and errors as status codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

from google.protobuf.message import DecodeError, Message

from drupe import errors
from drupe.errors import DataLoss, DrupeError, InvalidArgument, in_a_line
from drupe.rpc.ttrpc.envelope_pb2 import KeyValue, Request, Response, Status

_NANO = 1_000_000_000
_MAX_INT64 = 2**63 - 1

Metadata = Mapping[str, Sequence[str]]
"""Lower-case name to its values, in the order they were sent."""


class Code(IntEnum):
    """google.rpc.Code, which gRPC shares."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_ERRORS: dict[int, type[DrupeError]] = {
    Code.INVALID_ARGUMENT: errors.InvalidArgument,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    Code.NOT_FOUND: errors.NotFound,
    Code.ALREADY_EXISTS: errors.AlreadyExists,
    Code.PERMISSION_DENIED: errors.PermissionDenied,
    Code.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    Code.FAILED_PRECONDITION: errors.InvalidState,
    Code.ABORTED: errors.HelperFailed,
    Code.OUT_OF_RANGE: errors.InvalidArgument,
    Code.UNIMPLEMENTED: errors.Unsupported,
    Code.INTERNAL: errors.InternalError,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.DATA_LOSS: errors.DataLoss,
    Code.UNAUTHENTICATED: errors.PermissionDenied,
}


def status_of(error: DrupeError) -> Status:
    """The status that stands for an error: its code, and its text on one line with the hint."""
    code = Code[error.code] if error.code in Code.__members__ else Code.UNKNOWN
    text = f"{in_a_line(error)} ({error.hint})" if error.hint else in_a_line(error)
    return Status(code=code, message=text.encode(errors="replace").decode())


def error_of(status: Status) -> DrupeError:
    """The error that a status stands for."""
    kind = _ERRORS.get(status.code, DrupeError)
    name = Code(status.code).name if status.code in list(Code) else f"code {status.code}"
    return kind(status.message or f"the peer answered {name}", may_have_run=True)


def request(
    service: str, method: str, payload: bytes, *, timeout_s: float | None, metadata: Mapping[str, Sequence[str] | str]
) -> bytes:
    """The data of a request frame. timeout_s: None is no limit."""
    nano = 0 if timeout_s is None else max(1, min(int(timeout_s * _NANO), _MAX_INT64))
    pairs = [KeyValue(key=name, value=value) for name, values in metadata.items() for value in _listed(values)]
    return Request(
        service=service, method=method, payload=payload, timeout_nano=nano, metadata=pairs
    ).SerializeToString()


def _listed(values: Sequence[str] | str) -> Sequence[str]:
    return [values] if isinstance(values, str) else values


def timeout_of(envelope: Request) -> float | None:
    """Seconds that the caller will wait; None: as long as it takes. Not positive: it waits no longer."""
    return envelope.timeout_nano / _NANO if envelope.timeout_nano else None


def metadata_of(pairs: Iterable[KeyValue]) -> dict[str, tuple[str, ...]]:
    """Values by lower-case name."""
    found: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        name = pair.key.lower()
        found[name] = (*found.get(name, ()), pair.value)
    return found


def success(message: Message) -> bytes:
    """The data of a response frame."""
    return Response(status=Status(), payload=message.SerializeToString()).SerializeToString()


def failure(error: DrupeError) -> bytes:
    """The data of a response frame that says why not."""
    return Response(status=status_of(error)).SerializeToString()


def parse_request(data: bytes) -> Request:
    """Raises InvalidArgument when it is none."""
    try:
        return Request.FromString(data)
    except DecodeError as error:
        raise InvalidArgument("not a ttrpc request", cause=str(error)) from None


def parse_answer(data: bytes) -> bytes:
    """The payload of a response. Raises the error that it tells, DataLoss when it is no response."""
    try:
        response = Response.FromString(data)
    except DecodeError as error:
        raise DataLoss("not a ttrpc response", cause=str(error), may_have_run=True) from None
    if response.status.code != Code.OK:
        raise error_of(response.status)
    return response.payload

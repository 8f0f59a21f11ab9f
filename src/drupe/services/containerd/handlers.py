"""Which kind of sandbox a pod of containerd's gets: its runtime handler says, or its options, or an annotation.

A handler named `drupe-KIND`, a runtime type `io.containerd.drupe-KIND.v2` or the option `kind` decide for all who use
them: an annotation that says otherwise is refused. Where they say nothing (`drupe`), the choice is that of any pod
(docs/choosing.md).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping

from google.protobuf.message import DecodeError

from drupe.errors import InvalidArgument
from drupe.rpc.containerd import runtime_options_pb2, sandbox_pb2
from drupe.runtime.choosing import WISH
from drupe.sandboxers.kinds import kind_of

RUNTIME = "io.containerd.drupe.v2"
_RUNTIME_KIND = re.compile(r"io\.containerd\.drupe-([a-z]+)\.v2")
_METADATA = "metadata"  # the key of the extension in which the CRI keeps what it knows of a pod


def handler_of(sandbox: sandbox_pb2.Sandbox) -> str:
    """The name of the runtime handler that the CRI was asked for; "" when nobody says."""
    try:
        known = json.loads(sandbox.extensions[_METADATA].value) if _METADATA in sandbox.extensions else {}
        return str(known["Metadata"]["RuntimeHandler"])
    except (ValueError, KeyError, TypeError):
        return ""


def kind_asked(sandbox: sandbox_pb2.Sandbox, annotations: Mapping[str, str]) -> str:
    """The kind that handler, runtime type or options name; "" leaves it to the annotation and the node. Raises
    InvalidArgument when they contradict each other or name no kind, Unsupported for one that is not built."""
    asked = dict(_asked(sandbox))
    if WISH in annotations and asked:
        asked[f"the annotation {WISH}"] = annotations[WISH]
    if len(set(asked.values())) > 1:
        said = ", ".join(f"{who} asks for {kind}" for who, kind in asked.items())
        raise InvalidArgument(f"the pod's kind of sandbox is not clear: {said}", hint="a handler decides for its pods")
    for kind in asked.values():
        kind_of(kind) if kind != "auto" else None
    return next(iter(asked.values()), "")


def _asked(sandbox: sandbox_pb2.Sandbox) -> Iterator[tuple[str, str]]:
    """Who names a kind, and which."""
    handler, runtime = handler_of(sandbox), sandbox.runtime.name
    if handler.startswith("drupe-"):
        yield f"handler {handler}", handler.removeprefix("drupe-")
    if found := _RUNTIME_KIND.fullmatch(runtime):
        yield f"runtime {runtime}", found[1]
    if kind := _option(sandbox):
        yield "option kind", kind


def _option(sandbox: sandbox_pb2.Sandbox) -> str:
    """The `kind` of the handler's options in containerd's configuration."""
    if not sandbox.runtime.options.type_url.endswith("runtimeoptions.v1.Options"):
        return ""
    try:
        body = runtime_options_pb2.Options.FromString(sandbox.runtime.options.value).config_body
        options = tomllib.loads(body.decode())
    except (DecodeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"options of the runtime handler: {error}") from None
    for key in options:
        if key != "kind":
            raise InvalidArgument(f"options of the runtime handler: unknown key {key!r}", hint="known keys: kind")
    return str(options.get("kind", ""))

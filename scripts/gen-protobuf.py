"""Writes NAME_pb2.py and NAME_pb2.pyi beside each .proto file below src/drupe, by protoc; and for the guest's agent the
messages that it knows, as Rust modules that invoke its macro `messages!` (native/agent/src/proto).

    scripts/gen-protobuf.py [--check]

--check writes nothing and fails when a file is not what its source makes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).parents[1]
BASE = ROOT / "src"  # where imports begin
AGENT = ROOT / "native/agent/src/proto"
# package of the agent's messages: module that they are in
MODULES = {
    "drupe.guest.v1": "guest",
    "containerd.task.v3": "task",
    "containerd.v1.types": "types",
    "containerd.types": "mount",
    "io.containerd.cgroups.v2": "cgroup2",
    "drupe.rpc.ttrpc": "ttrpc",
    "google.protobuf": "wellknown",
}
# what the agent sends or takes besides the methods of its services
AGENT_MESSAGES = (".drupe.rpc.ttrpc.Request", ".drupe.rpc.ttrpc.Response", ".io.containerd.cgroups.v2.Metrics")
AGENT_SERVICES = {"drupe.guest.v1", "containerd.task.v3"}
_INCLUDES = Path(protoc.__file__).parent / "_proto"


def generate(out: str) -> dict[Path, bytes]:
    """Path to content of each generated file."""
    sources = sorted(str(path.relative_to(BASE)) for path in BASE.rglob("*.proto"))
    described = Path(out) / "descriptors"
    words = ["protoc", f"-I{BASE}", f"-I{_INCLUDES}", f"--python_out={out}", f"--pyi_out={out}"]
    words += [f"--descriptor_set_out={described}", "--include_imports", *sources]
    if protoc.main(words) != 0:
        sys.exit("gen-protobuf: protoc failed")
    files = {BASE / path.relative_to(out): path.read_bytes() for path in Path(out).rglob("*_pb2.py*")}
    return files | agent_files(FileDescriptorSet.FromString(described.read_bytes()))


def agent_files(described: FileDescriptorSet) -> dict[Path, bytes]:
    """Path to content of each module of the agent's messages."""
    all_messages = {
        f".{file.package}.{message.name}": message for file in described.file for message in file.message_type
    }
    wanted = list(AGENT_MESSAGES)
    for service in (s for file in described.file if file.package in AGENT_SERVICES for s in file.service):
        wanted += [name for method in service.method for name in (method.input_type, method.output_type)]
    reached = reachable(wanted, all_messages)
    return {AGENT / f"{module}.rs": rust_module(package, all_messages, reached) for package, module in MODULES.items()}


def reachable(names: list[str], messages: dict[str, DescriptorProto]) -> set[str]:
    """Full names of the messages that `names` are made of."""
    found: set[str] = set()
    while names:
        if (name := names.pop()) in found or name not in messages:
            continue  # entries of maps are not messages of their own
        found.add(name)
        names += [field.type_name for field in messages[name].field if field.type == field.TYPE_MESSAGE]
    return found


def rust_module(package: str, messages: dict[str, DescriptorProto], wanted: set[str]) -> bytes:
    """A file of the agent: the messages of `package` that it knows, in the order of their source."""
    lines = [f"//! Messages of {package}. Written by scripts/gen-protobuf.py.", "", "crate::wire::messages! {"]
    for name, message in messages.items():
        if name in wanted and name.rpartition(".")[0] == f".{package}":
            lines += [f"    {message.name} {{", *(f"        {line}" for line in rust_fields(package, message)), "    }"]
    return ("\n".join([*lines, "}"]) + "\n").encode()


def rust_fields(package: str, message: DescriptorProto) -> Iterator[str]:
    """`name: type, shape codec = number;` of each field."""
    maps = {nested.name for nested in message.nested_type if nested.options.map_entry}
    for field in message.field:
        name = f"r#{field.name}" if field.name in {"type", "in", "use", "move", "ref", "where"} else field.name
        kind, codec = rust_type(package, field)
        if field.type_name.rpartition(".")[2] in maps:  # all of ours are of strings
            kind, shape, codec = "std::collections::BTreeMap<String, String>", "map", "string"
        elif field.label == field.LABEL_REPEATED:
            kind, shape = f"Vec<{kind}>", "many"
        elif field.type == field.TYPE_MESSAGE or field.HasField("oneof_index"):
            kind, shape = f"Option<{kind}>", "opt"
        else:
            shape = "one"
        yield f"{name}: {kind}, {shape} {codec} = {field.number};"


def rust_type(package: str, field: FieldDescriptorProto) -> tuple[str, str]:
    """Type and prost's codec of one value."""
    scalars = {
        field.TYPE_DOUBLE: ("f64", "double"), field.TYPE_INT64: ("i64", "int64"), field.TYPE_UINT64: ("u64", "uint64"),
        field.TYPE_INT32: ("i32", "int32"), field.TYPE_BOOL: ("bool", "bool"), field.TYPE_STRING: ("String", "string"),
        field.TYPE_BYTES: ("Vec<u8>", "bytes"), field.TYPE_UINT32: ("u32", "uint32"), field.TYPE_ENUM: ("i32", "int32"),
    }  # fmt: skip
    if field.type != field.TYPE_MESSAGE:
        return scalars[field.type]
    home, _, name = field.type_name[1:].rpartition(".")
    path = name if home == package else f"super::{MODULES.get(home, '')}::{name}"
    return path, "message"


def main() -> None:
    """Write what differs, or say so."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted = generate(scratch)
    stale = [path for path, data in wanted.items() if not path.exists() or path.read_bytes() != data]
    if stale and "--check" in sys.argv:
        sys.exit(f"not what protoc makes: {', '.join(str(path.relative_to(ROOT)) for path in stale)}")
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(wanted[path])


if __name__ == "__main__":
    main()

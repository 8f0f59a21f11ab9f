"""Writes NAME_pb2.py and NAME_pb2.pyi beside each .proto file below src/drupe, by protoc.

    scripts/gen-protobuf.py [--check]

--check writes nothing and fails when a file is not what protoc makes of its source.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[1]
BASE = ROOT / "src"  # where imports begin
_INCLUDES = Path(protoc.__file__).parent / "_proto"


def generate(out: str) -> dict[Path, bytes]:
    """Path to content of each generated file."""
    sources = sorted(str(path.relative_to(BASE)) for path in BASE.rglob("*.proto"))
    words = ["protoc", f"-I{BASE}", f"-I{_INCLUDES}", f"--python_out={out}", f"--pyi_out={out}", *sources]
    if protoc.main(words) != 0:
        sys.exit("gen-protobuf: protoc failed")
    return {BASE / path.relative_to(out): path.read_bytes() for path in Path(out).rglob("*_pb2.py*")}


def main() -> None:
    """Write what differs, or say so."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted = generate(scratch)
    stale = [path for path, data in wanted.items() if not path.exists() or path.read_bytes() != data]
    if stale and "--check" in sys.argv:
        sys.exit(f"not what protoc makes: {', '.join(str(path.relative_to(ROOT)) for path in stale)}")
    for path in stale:
        path.write_bytes(wanted[path])


if __name__ == "__main__":
    main()

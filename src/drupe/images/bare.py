"""A WebAssembly module on its own, named where an image is expected: `drupe run ./hello.wasm`."""

from __future__ import annotations

from pathlib import Path

_MAGIC = b"\x00asm"


def bare_module(image: str) -> Path | None:
    """The file that `image` names, if it is one and no image can be meant: it is a path, or ends in .wasm."""
    if not image.startswith((".", "/")) and not image.endswith(".wasm"):
        return None
    path = Path(image)
    try:
        with path.open("rb") as file:
            return path if file.read(len(_MAGIC)) == _MAGIC else None
    except OSError:
        return None

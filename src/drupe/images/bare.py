"""A WebAssembly module on its own, named where an image is expected: `drupe run ./hello.wasm`."""

from __future__ import annotations

from pathlib import Path

from drupe.errors import InvalidArgument, NotFound

_MAGIC = b"\x00asm"


def bare_module(image: str) -> Path | None:
    """The file that `image` names, if it is a module: it is a path, or ends in .wasm and is no name of an image.

    Raises InvalidArgument for a path (no image's name begins with "." or "/") to something else, NotFound to nothing.
    """
    is_path = image.startswith((".", "/"))
    if not is_path and not image.endswith(".wasm"):
        return None
    path = Path(image)
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) == _MAGIC:
                return path
    except OSError as error:
        if is_path:
            kind = NotFound if isinstance(error, FileNotFoundError) else InvalidArgument
            raise kind(f"{image} cannot be read: {error.strerror}", hint="a path is taken for a module") from None
    if is_path:
        raise InvalidArgument(
            f"{image} is no WebAssembly module: its first bytes are not those of one",
            hint="drupe image import takes archives and directories; drupe run then takes the image's name",
        )
    return None

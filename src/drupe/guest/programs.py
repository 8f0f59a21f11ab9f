"""Programs of the host with the libraries they need, as a guest gets them."""

from __future__ import annotations

import shutil
from pathlib import Path

from drupe.errors import NotFound
from drupe.guest.elf import needed
from drupe.guest.tree import Tree

# where the loader looks without a cache (ld.so(8)), Debian's way
_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu",
              "lib64", "usr/lib64", "lib", "usr/lib")  # fmt: skip


def add_program(tree: Tree, source: Path, path: str) -> None:
    """Put a program at `path`, and every library that it needs where the loader finds it. Raises NotFound."""
    tree.copy(source, path, 0o755)
    for name, found in libraries_of(source).items():
        target = name.lstrip("/") if name.startswith("/") else f"lib/{name}"
        tree.copy(found, target, 0o755)


def libraries_of(program: Path) -> dict[str, Path]:
    """All that the loader has to find for a program of the host, by name; the loader itself by its path. None for a
    static one. Raises NotFound, and InvalidArgument for what is no program of the processor's."""
    waiting, found = needed(program), dict[str, Path]()
    while waiting:
        if (name := waiting.pop()) not in found:
            found[name] = Path(name) if name.startswith("/") else find_library(name)
            waiting += needed(found[name])
    return found


def find_library(name: str) -> Path:
    """A shared library of this host. Raises NotFound."""
    for directory in _LIBRARIES:
        if (path := Path("/") / directory / name).exists():
            return path
    raise NotFound(
        f"there is no library {name} here", hint="which program of the guest needs it, and from where is it?"
    )


def find_program(name: str, hint: str) -> Path:
    """A program of this host. Raises NotFound."""
    found = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise NotFound(f"no program {name} for the guest", hint=hint)
    return Path(found).resolve()

"""Imports point down only, and system calls live on the ground floor."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/drupe"

# package or module directly below drupe → floor. An import may go to a lower floor, or stay on its own.
FLOORS = {
    "linux": 0,
    "errors": 1, "spec": 1, "state": 1, "rpc": 1,
    "resources": 2, "images": 2, "keeper": 2, "oci": 2, "hypervisors": 2, "guest": 2,
    "sandboxers": 3,
    "runtime": 4,
    "api": 5, "services": 5, "cli": 5,
    "__init__": 6, "__main__": 6,
}  # fmt: skip

# modules outside linux/ that may use what only linux/ should, each with its reason
ALLOWED_GROUND: dict[str, str] = {}

# modules that may start programs themselves; everything the daemon does while it serves goes through the keeper
ALLOWED_SUBPROCESS: dict[str, str] = {
    "api/daemon.py": "starts the daemon on demand, in the client's process",
    "keeper/programs.py": "starts the keeper itself, and the relay for containerd",
    "services/probing.py": "doctor's probes: asked for by a person, cached, each with a deadline",
    "services/warm.py": "starts the warm process of the command line itself, by posix_spawn",
    "cli/warm.py": "forks for each command; it has one thread and is not the daemon",
    "sandboxers/wasm/zygote.py": "a process of its own, whose work is to fork",
    "sandboxers/appkernel/platforms.py": "a probe: the doctor's, and once for the setting `auto`; with a deadline",
    "sandboxers/wasm/probe.py": "a program of its own: the doctor's probe of the wasm kind",
    "guest/helpers.py": "mkfs.erofs, apt-get, dpkg and compressors for a guest image, in the client's process",
    "images/erofs.py": "mkfs.erofs for an image on demand, in its worker thread",
    "images/registry_auth.py": "credential helpers, before a pull or push, in its worker thread",
}

GROUND_MODULES = {"ctypes", "_ctypes", "cffi"}
GROUND_CALLS = {"ioctl"}
STARTERS = {"os.system", "os.fork", "os.forkpty", "os.posix_spawn", "os.popen", "pty.fork", "pty.spawn"}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Path below src/drupe of each module → its syntax tree."""
    return {str(p.relative_to(PACKAGE)): ast.parse(p.read_text()) for p in sorted(PACKAGE.rglob("*.py"))}


MODULES = modules()


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of each import, relative ones resolved."""
    package = ["drupe", *Path(path).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module
            if module == "drupe":
                yield from ((node.lineno, f"drupe.{alias.name}") for alias in node.names)


def room(dotted: str) -> str:
    """`drupe.images.store` → `images`."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def own_room(path: str) -> str:
    """`images/store.py` → `images`; `errors.py` → `errors`."""
    return Path(path).parts[0].removesuffix(".py")


def internal_imports() -> Iterator[tuple[str, int, str, str]]:
    """(path, line, room of the importer, room of the imported) of each import inside drupe."""
    for path, tree in MODULES.items():
        for line, dotted in imports(path, tree):
            if dotted.split(".")[0] == "drupe" and dotted != "drupe":
                target = room(dotted)
                if target in FLOORS:
                    yield path, line, own_room(path), target


def test_every_package_has_a_floor() -> None:
    """A new package must say where it stands."""
    assert {own_room(path) for path in MODULES} - set(FLOORS) == set()


def test_imports_point_down() -> None:
    """No module imports from a floor above its own."""
    wrong = [
        f"{path}:{line}: {own} (floor {FLOORS[own]}) imports {target} (floor {FLOORS[target]})"
        for path, line, own, target in internal_imports()
        if FLOORS[target] > FLOORS[own]
    ]
    assert wrong == []


def test_packages_of_one_floor_do_not_import_each_other_in_a_circle() -> None:
    """Same-floor imports are allowed one way only."""
    edges = {(own, target) for _, _, own, target in internal_imports() if own != target}
    circles = sorted((a, b) for a, b in edges if (b, a) in edges and a < b)
    assert circles == []


def test_kernel_interfaces_live_in_linux_only() -> None:
    """ctypes and ioctl outside linux/ would spread unsafe code over the project."""
    wrong = [
        f"{path}:{line}: {what}"
        for path, tree in MODULES.items()
        if own_room(path) != "linux"
        for line, what in ground_uses(path, tree)
    ]
    assert [use for use in wrong if use.split(":")[0] not in ALLOWED_GROUND] == []
    assert set(ALLOWED_GROUND) - {use.split(":")[0] for use in wrong} == set(), "allow-list entry without a use"


def ground_uses(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of each use of a foreign-function module or ioctl."""
    for line, dotted in imports(path, tree):
        if dotted.split(".")[0] in GROUND_MODULES:
            yield line, f"import {dotted}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in GROUND_CALLS:
            yield node.lineno, ast.unparse(node)


def test_programs_are_started_by_the_keeper() -> None:
    """Forking the daemon is slow and unsafe with threads: subprocess and its like need a reason."""
    wrong = [f"{path}:{line}: {what}" for path, tree in MODULES.items() for line, what in program_starts(path, tree)]
    assert [use for use in wrong if use.split(":")[0] not in ALLOWED_SUBPROCESS] == []
    assert set(ALLOWED_SUBPROCESS) - {use.split(":")[0] for use in wrong} == set(), "allow-list entry without a use"


def program_starts(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of each way to start a program."""
    for line, dotted in imports(path, tree):
        if dotted.split(".")[0] in {"subprocess", "multiprocessing", "pty"}:
            yield line, f"import {dotted}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if text in STARTERS or text.endswith(("create_subprocess_exec", "create_subprocess_shell")):
                yield node.lineno, text

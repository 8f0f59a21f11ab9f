"""Files stay readable: documented, of human length, with a truthful __all__."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/drupe"
MAX_LINES = 600

# files that may be longer, each with its reason
LONG_FILES: dict[str, str] = {
    "tests/contract/sandboxer_suite.py": "one contract, one suite: who writes a kind reads it from top to bottom",
}

# a public thing this short says all by its name and types
SHORT_CLASS_LINES = 12
SHORT_FUNCTION_LINES = 8


def tracked(*suffixes: str) -> list[Path]:
    """Source files of the project with one of `suffixes`, without what is built or installed."""
    skipped = {".venv", "target", "node_modules", ".git", ".mypy_cache", ".ruff_cache", "results", "__pycache__"}
    return [p for p in sorted(ROOT.rglob("*")) if p.suffix in suffixes and not skipped & set(p.parts)]


def test_no_file_is_too_long() -> None:
    """600 lines is where a file wants to be two."""
    long = {str(p.relative_to(ROOT)): len(p.read_bytes().splitlines()) for p in tracked(".py", ".rs", ".sh")}
    over = {path: count for path, count in long.items() if count > MAX_LINES}
    assert {path: count for path, count in over.items() if path not in LONG_FILES} == {}
    assert set(LONG_FILES) - set(over) == set(), "allow-list entry for a file that is short"


TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

# documented once, at the contract: a method of that name in a class needs no second text
CONTRACT_METHODS = {
    method.name
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
    for method in node.body
    if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(method)
}

# handlers of the control API: drupe.spec.control is their documentation
HANDLERS = PACKAGE / "services/control"


def test_modules_and_public_things_have_docstrings() -> None:
    """Every module says what it is for; every public class and function what it means, unless it is self-evident."""
    missing = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, tree in TREES.items()
        for line, name in undocumented(path, tree)
    ]
    assert missing == []


def undocumented(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of what should have a docstring and has none."""
    if tree.body and ast.get_docstring(tree) is None:
        yield 1, "module"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            if length(node) > SHORT_CLASS_LINES and ast.get_docstring(node) is None and not is_record(node):
                yield node.lineno, node.name
            for method in wordless(node.body):
                if method.name not in CONTRACT_METHODS:
                    yield method.lineno, f"{node.name}.{method.name}"
    if HANDLERS not in path.parents:
        yield from ((function.lineno, function.name) for function in wordless(tree.body))


def wordless(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public functions of `body` that are long enough to need words and have none."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if length(node) > SHORT_FUNCTION_LINES and ast.get_docstring(node) is None:
            yield node


def is_record(node: ast.ClassDef) -> bool:
    """A class of typed fields only: their names say it."""
    return all(isinstance(statement, ast.AnnAssign | ast.Expr) for statement in node.body)


def length(node: ast.stmt) -> int:
    """Source lines of a definition."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def modules_with_all() -> list[str]:
    """Dotted names of the modules that say what they export."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if "__all__" in path.read_text() and path.name != "__main__.py":
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


@pytest.mark.parametrize("name", modules_with_all())
def test_all_is_real(name: str) -> None:
    """Each name of `__all__` exists, once."""
    module = importlib.import_module(name)
    exported = list(module.__all__)
    assert len(exported) == len(set(exported))
    assert [item for item in exported if not hasattr(module, item)] == []

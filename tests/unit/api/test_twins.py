"""The public surface: the two APIs are one API, and `drupe` exports what it says."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import drupe

PAIRS = {
    "containers": ["Container", "Containers"],
    "files": ["Files"],
    "images": ["Images"],
    "networks": ["Networks"],
    "pipes": ["Reader", "Writer", "Pump"],
    "pods": ["Pod", "Pods"],
    "process": ["Process"],
    "runtime": ["Runtime"],
    "sandbox": ["Sandbox"],
    "system": ["System"],
    "volumes": ["Volumes"],
}
TWINS = [(module, name) for module, names in PAIRS.items() for name in names]
TO_SYNC = {"__aenter__": "__enter__", "__aexit__": "__exit__", "__anext__": "__next__", "__aiter__": "__iter__"}
SYNC_ONLY = {("Reader", "take_buffered")}


def members(kind: type, name: str) -> dict[str, inspect.Signature | str]:
    """Public methods (with parameters) and properties of a class, under their blocking names."""
    found: dict[str, inspect.Signature | str] = {}
    for key, value in vars(kind).items():
        key = TO_SYNC.get(key, key)
        if (key.startswith("_") and not key.endswith("__")) or (name, key) in SYNC_ONLY:
            continue
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            found[key] = signature.replace(
                parameters=[p.replace(annotation=p.empty) for p in signature.parameters.values()],
                return_annotation=inspect.Signature.empty,
            )
        elif isinstance(value, property):
            found[key] = "property"
    return found


@pytest.mark.parametrize(("module", "name"), TWINS, ids=lambda value: str(value))
def test_twins_have_the_same_members(module: str, name: str) -> None:
    blocking = getattr(importlib.import_module(f"drupe.api._sync.{module}"), name)
    waiting = getattr(importlib.import_module(f"drupe.api._async.{module}"), f"Async{name}")
    assert members(blocking, name) == members(waiting, name)
    assert len(members(blocking, name)) > 1


@pytest.mark.parametrize("name", sorted({*drupe.__all__} - {"__version__"}))
def test_each_public_name_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(drupe, name))


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sandbx'"):
        _ = drupe.Sandbx  # type: ignore[attr-defined]
    assert {*drupe.__all__} <= {*dir(drupe)}


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import drupe", "asyncio msgspec socket logging drupe.errors"),
        ("import drupe; drupe.Sandbox, drupe.Network", "asyncio httpx rich click tarfile subprocess logging"),
        ("import drupe.rpc.client, drupe.api.daemon", "asyncio httpx rich click tarfile subprocess logging"),
    ],
)
def test_imports_stay_light(code: str, unwanted: str) -> None:
    check = f"import sys; {code}; print(*[m for m in {unwanted.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

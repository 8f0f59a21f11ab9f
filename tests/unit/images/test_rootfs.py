"""The overlay plan: options that fit, names that need escaping."""

from __future__ import annotations

from pathlib import Path

import pytest

from drupe.errors import InvalidArgument
from drupe.images.rootfs import RootfsPlan


def plan(directory: Path, links: tuple[str, ...], *, read_only: bool = False) -> RootfsPlan:
    return RootfsPlan(
        target=directory / "rootfs",
        cwd=Path("/store"),
        lower_dirs=tuple(Path("/store") / link for link in links),
        lower_links=links,
        upper=None if read_only else directory / "upper",
        work=None if read_only else directory / "work",
        volatile=True,
    )


def test_127_layers_fit_into_one_page() -> None:
    """Docker's limit of layers, with paths as long as a container's are."""
    links = tuple(f"l/{number:012x}" for number in range(127))
    options = plan(Path("/var/lib/drupe/containers") / ("c" * 64), links).options
    assert len(options) < 4096 and options.count(":") == 126


def test_special_characters_are_escaped() -> None:
    """A comma would end the option."""
    options = plan(Path("/a,b\\c"), ("l/1",)).options
    assert "upperdir=/a\\,b\\\\c/upper" in options and ",volatile" in options


def test_read_only() -> None:
    """Several layers without an upper one; a single one is a bind mount, which overlayfs would refuse."""
    two = plan(Path("/c"), ("l/1", "l/2"), read_only=True).mount()
    assert (two["fstype"], two["flags"]) == ("overlay", ["ro"]) and "upperdir" not in two["data"]
    one = plan(Path("/c"), ("l/1",), read_only=True).mount()
    assert one["flags"] == ["bind", "ro"] and one["source"] == "/store/l/1"


def test_too_long() -> None:
    """An error of ours, not EINVAL of mount(2)."""
    with pytest.raises(InvalidArgument, match="page"):
        _ = plan(Path("/" + "x" * 4000), ("l/1",)).options

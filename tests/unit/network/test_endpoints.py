"""What an interface of a pod's namespace is to a machine, as far as it can be told without one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from drupe.linux.rtnetlink import Link
from drupe.resources.network.endpoints import joining
from drupe.resources.network.endpoints.contract import Endpoint, Model, Wanted
from drupe.resources.network.endpoints.discover import classify, discover

ADDRESS = "0000:03:00.0"
CARD = Link(2, "eth0", mac="02:00:00:00:00:01", up=True, device=("pci", ADDRESS))
NOBODY = cast(Any, None)  # a keeper that is not asked


def found(link: Link, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    for name, answer in (("links", [link]), ("addresses", []), ("routes", [])):
        monkeypatch.setattr(f"drupe.linux.rtnetlink.{name}", lambda *_, answer=answer: answer)
    (endpoint,) = discover(NOBODY)
    return endpoint


def test_hardware_is_known_by_having_no_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = found(CARD, monkeypatch)
    assert (endpoint.kind, endpoint.pci, endpoint.detail) == ("physical", ADDRESS, "hardware")
    other_bus = found(Link(2, "eth0", up=True, device=("virtio", "virtio2")), monkeypatch)
    assert (other_bus.kind, other_bus.pci) == ("physical", "")
    assert classify(Link(2, "ib0", hardware=32)) == "layer 3"  # ARPHRD_INFINIBAND


@pytest.mark.parametrize("model", ["tc-filter", "macvtap", "bridged", "none"])
def test_hardware_goes_with_each_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert joining.choose(found(CARD, monkeypatch), model) == (model, "")


def test_hardware_on_pci_is_given_away_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = asyncio.run(joining.join(NOBODY, Path("/netns"), found(CARD, monkeypatch), Wanted(vfio=True)))
    assert (joined.how, joined.pci, joined.tap) == ("vfio", ADDRESS, "")

"""Which kind a pod gets: who is asked first, what auto takes, what the policy refuses, and that nothing is weakened."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from drupe.errors import DrupeError, InvalidArgument, PermissionDenied, Unsupported
from drupe.runtime import choosing
from drupe.runtime.choosing import ImageWish
from drupe.sandboxers.contract import Sandboxer
from drupe.sandboxers.features import FEATURES
from drupe.sandboxers.kinds import KINDS, LEVELS, Kind, Means
from drupe.spec import ContainerSpec, Mount, Namespaces, NetworkSpec, NodeConfig, PodSpec, PolicyRule, SecuritySpec
from drupe.spec.status import Choice

LINUX, MODULE = ImageWish("busybox", "linux"), ImageWish("hello", "wasi")


def never(means: Means) -> Sandboxer:
    raise AssertionError("choosing opens nothing")


def able(*denied: str) -> Mapping[str, str]:
    return {feature: "no: it is so" if feature in denied else "yes" for feature in FEATURES}


def kinds() -> dict[str, Kind]:
    """A planned machine, a kernel that can do little, modules, and namespaces that can do all but modules."""
    few = able("wasm-modules", "devices", "privileged", "host-network")
    modules = able("linux-programs", "tty", "bind-mounts")
    table = (
        Kind("vm", "machine", "m"),
        Kind("gvisor", "kernel", "k", able=lambda: few, open=never),
        Kind("wasm", "module", "w", able=lambda: modules, open=never),
        Kind("runc", "namespaces", "n", able=lambda: able("wasm-modules"), open=never),
    )
    return {kind.name: kind for kind in table}


def ask(
    *images: ImageWish,
    config: NodeConfig | None = None,
    broken: Mapping[str, str] | None = None,
    joined: frozenset[str] = frozenset(),
    **spec: Any,
) -> Choice:
    """The choice for a pod with these images. broken: what probes say."""
    container = spec.pop("container", {})
    containers = tuple(ContainerSpec(image=image.ref, **container) for image in images or (LINUX,))

    async def probe(kind: str) -> str:
        return (broken or {}).get(kind, "")

    pod, node = PodSpec(containers=containers, **spec), config or NodeConfig()
    question = choosing.ask(pod, images or (LINUX,), config=node, kinds=kinds(), probe=probe, joined=joined)
    return asyncio.run(choosing.choose(question))


# -- who is asked -----------------------------------------------------------------------------------------------------


def test_nobody_asks() -> None:
    choice = ask()
    assert (choice.kind, choice.level, choice.by) == ("runc", "namespaces", "built-in")


def test_an_image_of_modules_means_wasm_on_every_node() -> None:
    for config in (NodeConfig(), NodeConfig(sandbox="gvisor"), NodeConfig(sandbox="auto")):
        choice = ask(MODULE, config=config)
        assert (choice.kind, choice.by) == ("wasm", "built-in")


pytestmark = pytest.mark.usefixtures("planned")
ANNOTATED = {"annotations": {"drupe.kind": "gvisor"}}
LABELLED = ImageWish("app", "linux", "gvisor")


@pytest.mark.parametrize(
    ("given", "images", "node", "kind", "by"),
    [
        ({"sandbox": "runc", **ANNOTATED}, (LABELLED,), "gvisor", "runc", "request"),
        ({"annotations": {"drupe.kind": "runc"}}, (LABELLED,), "gvisor", "runc", "annotation"),
        (ANNOTATED, (LINUX,), "", "gvisor", "annotation"),
        ({}, (LABELLED,), "runc", "gvisor", "image"),
        ({}, (LABELLED,), "", "gvisor", "image"),
        ({}, (LINUX,), "gvisor", "gvisor", "node"),
        ({}, (LINUX,), "auto", "gvisor", "node"),
        ({"sandbox": "auto"}, (LINUX,), "runc", "gvisor", "request"),
        ({}, (ImageWish("app", "linux", "auto"),), "", "gvisor", "image"),
    ],
)
def test_the_first_who_says_something(given: Any, images: Any, node: str, kind: str, by: str) -> None:
    choice = ask(*images, config=NodeConfig(sandbox=node), **given)
    assert (choice.kind, choice.by) == (kind, by)


@pytest.mark.parametrize("default", ["gvisor", "auto"])
@pytest.mark.parametrize("wanted", ["runc", "auto"])
def test_an_image_may_not_weaken_the_default(default: str, wanted: str) -> None:
    """Who made an image is not who owns the node; what it wanted is said."""
    choice = ask(ImageWish("app", "linux", wanted), config=NodeConfig(sandbox=default))
    assert choice.kind == "gvisor"
    if wanted != default:
        assert choice.by == "node" and "app asks for" in choice.notes[0]


def test_images_that_disagree() -> None:
    with pytest.raises(InvalidArgument, match="a wants gvisor, b wants runc"):
        ask(ImageWish("a", "linux", "gvisor"), ImageWish("b", "linux", "runc"))


# -- a kind that is named ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "images", "error", "says"),
    [
        ({"sandbox": "jail"}, (), InvalidArgument, "unknown sandbox kind 'jail'"),
        ({"sandbox": "someday"}, (), Unsupported, "'someday' is not built in this version"),
        (
            {"annotations": {"drupe.kind": "jail"}},
            (),
            InvalidArgument,
            "unknown sandbox kind 'jail', which the pod's annotation drupe.kind asks for",
        ),
        (
            {},
            (ImageWish("app", "linux", "jail"),),
            InvalidArgument,
            "'jail', which an image's label drupe.kind",
        ),
        ({"sandbox": "wasm"}, (LINUX,), Unsupported, "wasm sandboxes cannot run programs made for Linux"),
        ({"sandbox": "runc"}, (MODULE,), Unsupported, "runc sandboxes cannot run WebAssembly"),
        ({}, (MODULE, LINUX), Unsupported, "wasm sandboxes cannot run programs made for Linux"),
        ({"sandbox": "wasm", "container": {"tty": True}}, (MODULE,), Unsupported, "a terminal"),
    ],
)
def test_it_is_refused_and_never_replaced(spec: Any, images: Any, error: type[DrupeError], says: str) -> None:
    with pytest.raises(error, match=says):
        ask(*images, **spec)


# -- auto -------------------------------------------------------------------------------------------------------------


def test_auto_takes_the_strongest_and_says_why_not_another() -> None:
    choice = ask(sandbox="auto")
    assert (choice.kind, choice.level) == ("gvisor", "kernel")
    assert [(one.kind, one.reason) for one in choice.passed_over] == [("vm", "not built in this version")]


def test_auto_passes_over_what_cannot_run_here() -> None:
    choice = ask(sandbox="auto", broken={"gvisor": "runsc is not installed"})
    assert choice.kind == "runc"
    assert [(one.kind, one.reason) for one in choice.passed_over] == [
        ("vm", "not built in this version"),
        ("gvisor", "runsc is not installed"),
        ("wasm", "cannot run programs made for Linux: it is so"),
    ]


def test_auto_passes_over_what_cannot_do_it() -> None:
    choice = ask(sandbox="auto", container={"security": SecuritySpec(privileged=True)})
    assert (choice.kind, choice.level) == ("runc", "none")
    assert choice.passed_over[1].reason == "cannot run privileged containers: it is so"


def test_auto_does_not_probe_what_cannot_do_it() -> None:
    """A probe may take a second."""
    choice = ask(MODULE, sandbox="auto", broken={"gvisor": "probed"})
    assert choice.kind == "wasm"
    assert "WebAssembly" in choice.passed_over[1].reason


def test_auto_with_nothing_left() -> None:
    with pytest.raises(Unsupported, match="no kind of sandbox can run this pod here") as caught:
        ask(MODULE, sandbox="auto", container={"tty": True})
    assert "wasm: cannot give a process a terminal" in caught.value.cause


# -- policy -----------------------------------------------------------------------------------------------------------

TENANTS = PolicyRule(name="tenants", namespace="tenant-*", minimum="kernel")
NODE = NodeConfig(policy=(TENANTS,))


def test_levels_are_those_of_kinds() -> None:
    assert [LEVELS.index(kind.level) for kind in KINDS.values()] == sorted(
        (LEVELS.index(kind.level) for kind in KINDS.values()), reverse=True
    )


@pytest.mark.parametrize(
    "given",
    [
        {},  # the default
        {"sandbox": "runc"},
        {"annotations": {"drupe.kind": "runc"}},
        {"images": (ImageWish("app", "linux", "runc"),)},
        {"images": (MODULE,)},
        {"sandbox": "auto", "broken": {"gvisor": "gone"}},
        {"sandbox": "auto", "container": {"security": SecuritySpec(privileged=True)}},
        {"sandbox": "gvisor", "namespaces": Namespaces(pid="host")},
        {"sandbox": "gvisor", "namespaces": Namespaces(ipc="host")},
        {"sandbox": "gvisor", "namespaces": Namespaces(uts="host")},
        {"sandbox": "auto", "network": NetworkSpec(mode="host")},
        {"sandbox": "gvisor", "network": NetworkSpec(mode="path"), "joined": frozenset({"host-pid"})},
    ],
)
def test_no_way_leads_below_the_minimum(given: dict[str, Any]) -> None:
    with pytest.raises(PermissionDenied, match="policy rule 'tenants' asks for isolation 'kernel'") as caught:
        ask(*given.pop("images", ()), config=NODE, namespace="tenant-a", **given)
    assert caught.value.details == {"rule": "tenants"}


def test_what_meets_the_minimum_passes_and_names_the_rule() -> None:
    assert ask(config=NODE, namespace="tenant-a", sandbox="gvisor").rules == ["tenants"]
    assert ask(config=NODE, namespace="tenant-a", sandbox="auto").kind == "gvisor"
    assert ask(config=NODE, namespace="other").rules == []


def test_rules_by_label_and_all_that_match_hold() -> None:
    some = PolicyRule(name="web", labels={"tier": "web"}, minimum="module")
    lax = PolicyRule(name="lax", minimum="none", deny=("devices",))
    config = NodeConfig(sandbox="gvisor", policy=(lax, some, TENANTS))
    assert ask(config=config, labels={"tier": "web", "more": "x"}).rules == ["lax", "web"]
    assert ask(config=config, labels={"tier": "db"}, sandbox="runc").rules == ["lax"]
    with pytest.raises(PermissionDenied, match="'web' asks for isolation 'module'"):
        ask(config=config, labels={"tier": "web"}, sandbox="runc")


@pytest.mark.parametrize("sandbox", ["runc", "auto"])
def test_features_that_a_rule_denies(sandbox: str) -> None:
    config = NodeConfig(policy=(PolicyRule(name="no-mounts", deny=("bind-mounts",)),))
    mounts = {"mounts": (Mount(target="/a", source="/b"),)}
    with pytest.raises(PermissionDenied, match="policy rule 'no-mounts' forbids 'bind-mounts'"):
        ask(config=config, sandbox=sandbox, container=mounts)


def test_auto_prefers_what_the_policy_allows_to_what_is_weaker() -> None:
    """The reason of each that was passed over is kept, also when the policy is the reason."""
    config = NodeConfig(policy=(PolicyRule(name="strong", minimum="machine"),))
    with pytest.raises(PermissionDenied, match="'strong' asks for isolation 'machine'") as caught:
        ask(config=config, sandbox="auto")
    assert "gvisor: policy rule 'strong'" in caught.value.cause and "vm: not built" in caught.value.cause

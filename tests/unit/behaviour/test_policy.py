"""The policy holds for all of a pod's life, and a configuration that cannot be read lets nothing new in."""

from __future__ import annotations

from typing import Any

import pytest

from drupe.errors import InvalidArgument, InvalidState, PermissionDenied, Unsupported
from drupe.spec import (
    ContainerSpec,
    ExecSpec,
    Mount,
    Namespaces,
    NodeConfig,
    PolicyRule,
    Resources,
    SecuritySpec,
)
from framework.bench import Bench

MINIMUM = PolicyRule(name="tenants", namespace="tenant-*", minimum="namespaces", deny=("volumes", "update"))


@pytest.fixture
def able(bench: Bench) -> Bench:
    """A node with a policy, whose kind could do everything."""
    yes = dict.fromkeys(bench.fake.capabilities(), "yes")
    bench.fake._table.able = yes
    bench.node.config = NodeConfig(sandbox="fake", policy=(MINIMUM,))
    return bench


async def tenant(bench: Bench, **pod: Any) -> Any:
    return await bench.start("sleep 60", namespace="tenant-a", **pod)


PRIVILEGED = SecuritySpec(privileged=True)


@pytest.mark.parametrize("pod", [{"container": {"security": PRIVILEGED}}, {"namespaces": Namespaces(pid="host")}])
async def test_a_pod_below_the_minimum_leaves_nothing(able: Bench, pod: dict[str, Any]) -> None:
    with pytest.raises(PermissionDenied, match="policy rule 'tenants'"):
        await tenant(able, **pod)
    assert not able.core.pods and not able.world.sandboxes
    assert await able.start("sleep 60", **pod)  # of another namespace


async def test_a_container_may_not_come_later_with_more(able: Bench) -> None:
    pod = await tenant(able)
    for spec, says in (
        (ContainerSpec(image="busybox", security=PRIVILEGED), "asks for isolation 'namespaces'"),
        (ContainerSpec(image="busybox", mounts=(Mount(target="/v", type="volume"),)), "forbids 'volumes'"),
    ):
        with pytest.raises(PermissionDenied, match=says) as caught:
            await able.core.create_container(pod, spec)
        assert caught.value.details == {"rule": "tenants"}
    assert len(pod.containers) == 1


async def test_exec_and_update_are_held_to_it(able: Bench) -> None:
    pod = await tenant(able)
    container = next(iter(pod.containers.values()))
    with pytest.raises(PermissionDenied, match=r"exec in container .* is refused: policy rule 'tenants'"):
        await container.execs.start(ExecSpec(argv=("true",), privileged=True), {})
    await container.execs.start(ExecSpec(argv=("true",)), {})
    for target in (pod, container):
        with pytest.raises(PermissionDenied, match="forbids 'update'"):
            await target.update(Resources(pids=5))


async def test_what_a_kind_cannot_do_is_refused_in_each_call(bench: Bench) -> None:
    """By name, before anything is done: also in exec, update, and in a container that comes later."""
    denied = dict.fromkeys(("cwd", "pids-limit", "processes", "pause", "user"), "no: switched off")
    bench.fake._table.able = dict(bench.fake.capabilities()) | denied
    pod = await bench.start("sleep 60")
    container = next(iter(pod.containers.values()))
    calls = {
        "cwd": container.execs.start(ExecSpec(argv=("true",), cwd="/tmp"), {}),
        "pids-limit": container.update(Resources(pids=5)),
        "processes": container.processes(),
        "pause": container.pause(),
        "user": bench.core.create_container(pod, ContainerSpec(image="busybox", user="7")),
    }
    for feature, call in calls.items():
        with pytest.raises(Unsupported) as caught:
            await call
        assert caught.value.details == {"kind": "fake", "feature": feature}


async def test_a_pod_that_is_older_than_a_rule_is_held_to_it_when_it_starts_again(able: Bench) -> None:
    able.node.config = NodeConfig(sandbox="fake")
    pod = await tenant(able, container={"security": PRIVILEGED})
    await pod.stop(force=True)
    able.node.config = NodeConfig(sandbox="fake", policy=(MINIMUM,))
    with pytest.raises(PermissionDenied, match=r"the start of pod .* is refused: policy rule 'tenants'"):
        await pod.start()
    able.node.config = NodeConfig(sandbox="fake")
    await pod.start()


async def test_the_choice_is_kept_with_the_pod_and_told(bench: Bench) -> None:
    pod = await bench.create("sleep 60", sandbox="auto")
    choice = pod.record().choice
    assert choice is not None and (choice.kind, choice.level, choice.asked, choice.by) == (
        "fake", "namespaces", "auto", "request",
    )  # fmt: skip
    told = next(event for event in bench.node.events.past(0, None) if event.action == "create" and event.type == "pod")
    assert told.attributes["sandbox"] == "fake" and told.attributes["by"] == "request"
    again = await bench.restart()
    assert again.core.pod(pod.id).record().choice == choice


async def test_while_the_configuration_cannot_be_read_nothing_new_is_made(bench: Bench) -> None:
    pod = await bench.start("patient")
    bench.node.closed = InvalidArgument("/etc/drupe/drupe.toml: unknown key 'polcy'")
    for call in (bench.create("sleep 60"), bench.core.create_container(pod, ContainerSpec(image="busybox"))):
        with pytest.raises(InvalidState, match=r"cannot be read: /etc/drupe/drupe.toml: unknown key 'polcy'") as caught:
            await call
        assert "SIGHUP" in caught.value.hint
    await pod.stop()  # what runs can be looked after
    bench.node.closed = None
    assert await bench.create("sleep 60")

"""Events over a real daemon: what is told, and that replay and follow meet without a gap or a duplicate."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from drupe.spec import Event, ExecSpec, HealthCheck, Resources, RestartPolicy
from drupe.spec.control import Events, ExecStart, Kill, Ref, Update
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_pods_left(daemon: Daemon) -> Iterator[None]:
    """Each test starts and ends without pods."""
    yield
    daemon.delete_pods()


def told(daemon: Daemon, since: float, *ids: str, until: float | None = None) -> list[Event]:
    """What the journal kept."""
    events: list[Event] = []
    with daemon.client() as client:
        wanted = Events(since=since, until=until, follow=False, ids=ids)
        client.call("system.events", wanted, on_item=events.append, timeout_s=10)
    return events


def actions(events: list[Event]) -> list[str]:
    return [event.action for event in events]


def test_running_out_of_memory_is_told_while_the_container_goes_on(daemon: Daemon) -> None:
    began = time.time()
    limits = Resources(memory_bytes=16 * MIB, memory_swap_bytes=16 * MIB)
    script = "tail /dev/zero; sleep 1000"  # the child grows and is killed; the shell stays
    container = daemon.run_pod("sh", "-c", script, resources=limits).containers[0].id
    wait_until(lambda: "oom_kill" in actions(told(daemon, began, container)), what="an OOM kill is told")
    seen = set(actions(told(daemon, began, container)))
    assert {"oom", "oom_kill", "memory_pressure"} <= seen
    assert "die" not in seen


def test_an_oom_kill_of_the_main_process_is_told_before_its_end(daemon: Daemon) -> None:
    began = time.time()
    limits = Resources(memory_bytes=16 * MIB, memory_swap_bytes=16 * MIB)
    container = daemon.run_pod("tail", "/dev/zero", resources=limits).containers[0].id
    wait_until(lambda: "die" in actions(told(daemon, began, container)), what="its end is told")
    events = told(daemon, began, container)
    assert actions(events).index("oom_kill") < actions(events).index("die")
    (die,) = [event for event in events if event.action == "die"]
    assert (die.attributes["exit_code"], die.attributes["reason"]) == ("137", "OOMKilled")


def test_what_is_done_to_a_container_is_told_in_order(daemon: Daemon) -> None:
    began = time.time()
    pod = daemon.run_pod("sleep", "1000")
    container = pod.containers[0].id
    with daemon.client() as client:
        client.call("container.pause", Ref(ref=container))
        client.call("container.resume", Ref(ref=container))
        client.call("exec.start", ExecStart(ref=container, spec=ExecSpec(argv=("sh", "-c", "exit 4"))))
        client.call("container.update", Update(ref=container, resources=Resources(pids=77)))
        client.call("container.kill", Kill(ref=container, signal="KILL"))
    wait_until(lambda: "die" in actions(told(daemon, began, container)), what="its end is told")
    events = told(daemon, began, container)
    expected = ["create", "start", "pause", "unpause", "exec_start", "exec_die", "update", "kill", "die"]
    assert actions(events)[: len(expected)] == expected
    (exec_die,) = [event for event in events if event.action == "exec_die"]
    assert exec_die.attributes["exit_code"] == "4"
    paused = [event.action for event in told(daemon, began, pod.id)]
    assert paused[:2] == ["create", "start"]


def test_health_is_told_as_it_changes(daemon: Daemon) -> None:
    began = time.time()
    check = HealthCheck(argv=("test", "-e", "/well"), interval_s=0.05, retries=2)
    container = daemon.run_pod("sleep", "1000", health=check).containers[0].id

    def health() -> list[str]:
        return [a.removeprefix("health_status: ") for a in actions(told(daemon, began, container)) if "health" in a]

    wait_until(lambda: health()[-1:] == ["unhealthy"], what="it is unhealthy")
    daemon.command("exec", container, "touch", "/well", check=True)
    wait_until(lambda: health()[-1:] == ["healthy"], what="it is healthy")
    assert health() == ["starting", "unhealthy", "healthy"]


def test_each_run_of_a_restarted_container_is_told(daemon: Daemon) -> None:
    began = time.time()
    policy = RestartPolicy(name="on-failure", max_retries=2, delay_s=0.05)
    container = daemon.run_pod("sh", "-c", "exit 3", restart=policy).containers[0].id
    wait_until(lambda: actions(told(daemon, began, container)).count("die") == 3, what="it has ended three times")
    runs = [action for action in actions(told(daemon, began, container)) if action in ("start", "die")]
    assert runs == ["start", "die"] * 3


def test_replay_and_follow_meet_without_gap_or_duplicate(daemon: Daemon) -> None:
    """Followers join at any moment while events keep coming: each sees what the journal has, exactly."""
    container = daemon.run_pod("sleep", "1000").containers[0].id
    began = time.time()
    over = threading.Event()

    def produce() -> None:
        with daemon.client() as client:
            for _ in range(400):
                client.call("container.kill", Kill(ref=container, signal="URG"))
        over.set()
        with daemon.client() as client:
            client.call("container.pause", Ref(ref=container))  # the last word
            client.call("container.resume", Ref(ref=container))

    def follow(number: int) -> list[Event]:
        time.sleep(number * 0.04)
        seen: list[Event] = []
        with daemon.client() as client, client.stream("system.events", Events(since=began, ids=(container,))) as stream:
            for event in stream:
                seen.append(event)
                if event.action == "unpause":
                    return seen
        raise AssertionError("the stream ended")

    with ThreadPoolExecutor(11) as pool:
        producer = pool.submit(produce)
        followers = [pool.submit(follow, number) for number in range(10)]
        producer.result(30)
        kept = told(daemon, began, container)
        assert actions(kept) == ["kill"] * 400 + ["pause", "unpause"]
        for follower in followers:
            assert follower.result(30) == kept


def test_a_window_of_the_past_and_an_end_in_the_future(daemon: Daemon) -> None:
    container = daemon.run_pod("sleep", "1000").containers[0].id
    before = time.time()
    with daemon.client() as client:
        client.call("container.pause", Ref(ref=container))
        between = time.time()
        client.call("container.resume", Ref(ref=container))
    assert actions(told(daemon, before, container, until=between)) == ["pause"]
    assert actions(told(daemon, between, container)) == ["unpause"]
    followed: list[Event] = []
    with daemon.client() as client:
        until = time.time() + 0.2
        wanted = Events(since=before, until=until, follow=True, ids=(container,))
        client.call("system.events", wanted, on_item=followed.append, timeout_s=10)
    assert actions(followed) == ["pause", "unpause"]
    assert until <= time.time() < until + 2

"""`drupe ps`: the containers, one line each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import click

from drupe.cli import connection
from drupe.cli.options import format_option, json_option, many, quiet_option
from drupe.cli.output import ago, human_duration, shorten, show_list
from drupe.errors import InvalidArgument
from drupe.spec.control import ListFilter
from drupe.spec.status import STATES, ContainerStatus, PodStatus, PublishedPort

LIVE = ("creating", "ready", "running", "paused")
_HEADERS: tuple[str, ...] = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "POD", "NAME")
_FILTERS = "label=K[=V], status=STATE, pod=NAME, name=TEXT, id=ID, ancestor=IMAGE, network=NAME, health=STATE, exited=N"


@click.command("ps")
@click.option("-a", "--all", "every", is_flag=True, help="Also those that have ended.")
@click.option("-n", "--last", type=click.IntRange(1), metavar="N", help="The last N that were made, also ended ones.")
@click.option("-l", "--latest", is_flag=True, help="As --last 1.")
@many("-f", "--filter", "filters", metavar="KEY=VALUE", help=f"{_FILTERS}.")
@click.option("--all-owners", is_flag=True, help="Also those of containerd, Docker and Podman, to be looked at.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten ids and commands.")
@quiet_option
@json_option
@format_option
def ps(
    *,
    every: bool,
    last: int | None,
    latest: bool,
    filters: tuple[str, ...],
    all_owners: bool,
    no_trunc: bool,
    quiet: bool,
    as_json: bool,
    template: str | None,
) -> None:
    """List containers."""
    last = 1 if latest else last
    shown = _found(filters, every=every or last is not None, all_owners=all_owners)[:last]
    by_id = {container.id: pod for pod, container in shown}
    width = 10_000 if no_trunc else 28

    def identifier(container: ContainerStatus) -> str:
        return container.id if no_trunc else container.id[:12]

    def row(container: ContainerStatus) -> tuple[str, ...]:
        pod = by_id[container.id]
        command = shorten(" ".join(container.argv), width)
        name, ports = container.name or "-", format_ports(pod.ports)
        made = ago(container.created_at)
        cells = (identifier(container), container.image, command, made, describe(container), ports, pod.name, name)
        return (*cells, pod.owner or "-") if all_owners else cells

    headers = _HEADERS + (("OWNER",) if all_owners else ())
    containers = [container for _, container in shown]
    show_list(containers, as_json=as_json, quiet=quiet, name=identifier, headers=headers, row=row, template=template)


def _found(filters: tuple[str, ...], *, every: bool, all_owners: bool) -> list[tuple[PodStatus, ContainerStatus]]:
    """What the filters leave, latest first."""
    ours = [text for text in filters if text.partition("=")[0] in _MATCHES]
    query, name = read_filters([text for text in filters if text not in ours])
    every = every or any(text.startswith("exited=") for text in ours)
    pods: list[PodStatus] = connection.call(
        "pod.list", ListFilter(namespace=query.namespace, all_owners=all_owners)
    ).pods
    shown = [(pod, c) for pod in pods for c in pod.containers if _wanted(pod, c, query, name, every)]
    shown.sort(key=lambda both: both[1].created_at, reverse=True)
    for key, _, value in (text.partition("=") for text in ours):
        shown = [(pod, c) for pod, c in shown if _MATCHES[key](pod, c, value)]
    return shown


_NETWORKS = {"bridge": "default"}
_MATCHES: dict[str, Callable[[PodStatus, ContainerStatus, str], bool]] = {
    "id": lambda pod, container, text: container.id.startswith(text),
    "ancestor": lambda pod, container, text: (
        text.removesuffix(":latest") in (container.image.removesuffix(":latest"), container.image_digest)
    ),
    "network": lambda pod, container, text: any(e.network in (text, _NETWORKS.get(text)) for e in pod.endpoints),
    "health": lambda pod, container, text: (container.health or "none") == text,
    "exited": lambda pod, container, text: container.exit is not None and str(container.exit.code) == text,
}


def read_filters(filters: Iterable[str]) -> tuple[ListFilter, str]:
    """The daemon's filter, and the part of a name that must occur."""
    found: dict[str, list[str]] = {"label": [], "status": [], "pod": [], "name": [], "namespace": []}
    for text in filters:
        key, equals, value = text.partition("=")
        if key not in found or not equals:
            raise InvalidArgument(f"bad filter {text!r}", hint=_FILTERS)
        found[key].append(value)
    states = tuple("stopped" if state == "exited" else state for state in found["status"])
    for state in states:
        if state not in STATES:
            raise InvalidArgument(f"unknown state {state!r}", hint=f"states: {', '.join(STATES)}")
    pod, name, namespace = ((found[key] or [None])[-1] for key in ("pod", "name", "namespace"))  # type: ignore[list-item]
    return ListFilter(labels=tuple(found["label"]), states=states, pod=pod, namespace=namespace), name or ""


def _wanted(pod: PodStatus, container: ContainerStatus, query: ListFilter, name: str, every: bool) -> bool:
    states = query.states or (STATES if every else LIVE)
    return (
        container.state in states
        and name in container.name
        and (query.pod is None or query.pod == pod.name or pod.id.startswith(query.pod))
        and all(has_label(container.labels, label) for label in query.labels)
    )


def has_label(labels: dict[str, str], wanted: str) -> bool:
    """Whether `labels` satisfy "k" or "k=v"."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def describe(container: ContainerStatus) -> str:
    """The state as Docker words it: "Up 3 minutes (healthy)", "Exited (1) 5 minutes ago"."""
    if container.state in ("running", "paused") and container.started_at:
        up = f"Up {human_duration(time.time() - container.started_at)}"
        notes = ([container.health] if container.health else []) + (["paused"] if container.state == "paused" else [])
        return up + (f" ({', '.join(notes)})" if notes else "")
    if container.exit is not None:
        reason = f", {container.exit.reason}" if container.exit.reason not in ("", "Error") else ""
        return f"Exited ({container.exit.code}{reason}) {ago(container.finished_at or container.exit.at)}".rstrip()
    if container.state == "failed" and container.cause:
        return f"Failed: {shorten(container.cause, 40)}"
    return container.state.capitalize()


def format_ports(ports: Iterable[PublishedPort]) -> str:
    """Published ports as "0.0.0.0:8080->80/tcp"; one without an address is published on all."""
    return ", ".join(
        f"{f'[{p.host_ip}]' if ':' in p.host_ip else p.host_ip or '*'}:{p.host_port}->{p.container_port}/{p.protocol}"
        for p in ports
    )

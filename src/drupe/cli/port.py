"""`drupe port`: where a container's published ports are."""

from __future__ import annotations

import click

from drupe.cli import connection
from drupe.cli.options import ref
from drupe.errors import NotFound
from drupe.spec.control import Ref
from drupe.spec.status import PodStatus, PublishedPort


@click.command("port")
@ref("container")
@click.argument("wanted", metavar="[PORT[/PROTO]]", required=False, default="")
def port(*, ref: str, wanted: str) -> None:
    """Show the published ports of CONTAINER's pod, or where PORT is published."""
    with connection.connect() as client:
        pod: PodStatus = client.call("pod.status", Ref(ref=client.call("container.status", Ref(ref=ref)).pod))
    if not wanted:
        for published in pod.ports:
            click.echo(f"{_inside(published)} -> {_outside(published)}")
        return
    name = wanted if "/" in wanted else f"{wanted}/tcp"
    found = [published for published in pod.ports if _inside(published) == name]
    if not found:
        raise NotFound(f"port {name} of {ref} is not published", hint="publish it at the start: drupe run -p …")
    for published in found:
        click.echo(_outside(published))


def _inside(published: PublishedPort) -> str:
    return f"{published.container_port}/{published.protocol}"


def _outside(published: PublishedPort) -> str:
    """As Docker writes it; a port without an address is published on all, IPv6 too."""
    address = published.host_ip or "0.0.0.0"  # noqa: S104 - Docker's word for every address
    return f"{f'[{address}]' if ':' in address else address}:{published.host_port}"

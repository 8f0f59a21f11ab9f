"""`drupe inspect`: everything that is known of an object, as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from drupe.cli import connection
from drupe.cli.options import refs
from drupe.errors import NotFound
from drupe.spec.control import Ref

if TYPE_CHECKING:
    from drupe.rpc.client import Client

_METHODS = {
    "container": "container.inspect",
    "pod": "pod.status",
    "image": "image.inspect",
    "network": "network.inspect",
    "volume": "volume.inspect",
    "snapshot": "snapshot.inspect",
}


_format = click.option("-f", "--format", "template", metavar="TEMPLATE", help="As '{{.State.Status}}' says.")


@click.command("inspect")
@click.option("--type", "kind", type=click.Choice(list(_METHODS)), help="Look only among these.")
@_format
@refs("container")
def inspect(*, kind: str | None, template: str | None, refs: tuple[str, ...]) -> None:
    """Show all that is known of containers, pods, images, networks or volumes, as one JSON list."""
    kinds = (kind,) if kind else tuple(_METHODS)
    with connection.connect() as client:
        show([find(client, ref, kinds) for ref in refs], template)


def find(client: Client, ref: str, kinds: tuple[str, ...]) -> Any:
    """The first object called `ref` among `kinds`. Raises NotFound."""
    for kind in kinds:
        try:
            return client.call(_METHODS[kind], Ref(ref=ref))
        except NotFound:
            continue
    words = " or ".join((", ".join(kinds[:-1]), kinds[-1])) if len(kinds) > 1 else kinds[0]
    raise NotFound(f"no {words} is called {ref!r}", hint="see what there is: drupe ps -a, drupe images")


def show(values: list[Any], template: str | None) -> None:
    """Indented JSON, for eyes and for jq alike, or what the template makes of each."""
    if template is not None:
        from drupe.cli import formats

        filled = formats.read(template)
        for value in values:
            click.echo(filled.fill(formats.inspected(value)))
        return
    text = msgspec.json.format(msgspec.json.encode(values), indent=2)
    click.echo(text.decode())


def inspector(kind: str) -> click.Command:
    """The verb `inspect` of a group."""

    @click.command("inspect", help=f"Show all that is known of {kind}s, as one JSON list.")
    @_format
    @refs(kind)
    def command(template: str | None, refs: tuple[str, ...]) -> None:
        with connection.connect() as client:
            show([find(client, ref, (kind,)) for ref in refs], template)

    return command


containers, pods, images = inspector("container"), inspector("pod"), inspector("image")
networks, volumes, snapshots = inspector("network"), inspector("volume"), inspector("snapshot")

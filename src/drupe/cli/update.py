"""`drupe update`: other limits for running containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from drupe.cli import podspec
from drupe.cli.errors import say
from drupe.cli.lifecycle import for_each
from drupe.cli.options import refs
from drupe.errors import InvalidArgument
from drupe.spec import Resources
from drupe.spec.control import Update

if TYPE_CHECKING:
    from drupe.rpc.client import Client


def updater(kind: str) -> click.Command:
    """The verb `update` for containers or pods."""

    @click.command("update", help=f"Change the limits of {kind}s; what is not named stays as it is.")
    @podspec.resource_options
    @refs(kind)
    def command(refs: tuple[str, ...], **flags: Any) -> int:
        limits = podspec.resources(flags)
        if limits == Resources():
            raise InvalidArgument("no limit was named", hint="for example --memory 64m or --cpus 0.5")

        def act(client: Client, ref: str) -> None:
            for note in client.call(f"{kind}.update", Update(ref=ref, resources=limits)).notes:
                say(f"{ref}: {note}")

        return for_each(refs, act)

    return command


update, update_pod = updater("container"), updater("pod")

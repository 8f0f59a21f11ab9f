"""`drupe volume …`: named volumes."""

from __future__ import annotations

import click

from drupe.cli import connection, parse
from drupe.cli.group import LazyGroup, Verb
from drupe.cli.lifecycle import for_each
from drupe.cli.options import format_option, json_option, many, quiet_option, refs
from drupe.cli.output import ago, show_list
from drupe.cli.prune import prune as run_prune
from drupe.spec.control import Delete, ListFilter, Prune, VolumeCreate, VolumeInfo

VERBS: dict[str, Verb] = {
    "create": Verb("volume:create", "Create a volume"),
    "ls": Verb("volume:ls", "List volumes"),
    "inspect": Verb("inspect:volumes", "Show all that is known of volumes"),
    "rm": Verb("volume:rm", "Remove volumes"),
    "prune": Verb("volume:prune", "Remove volumes that nothing uses"),
}

volume = LazyGroup("volume", VERBS, help="Volumes.")


@click.command("create")
@many("-l", "--label", parse=parse.label, metavar="KEY=VALUE", help="Label.")
@click.argument("name", required=False, default="")
def create(*, name: str, label: tuple[tuple[str, str], ...]) -> None:
    """Create a volume and print its name."""
    click.echo(connection.call("volume.create", VolumeCreate(name=name, labels=dict(label))).name)


@click.command("ls")
@quiet_option
@json_option
@format_option
def ls(*, quiet: bool, as_json: bool, template: str | None) -> None:
    """List volumes."""
    volumes: list[VolumeInfo] = connection.call("volume.list", ListFilter()).volumes

    def row(v: VolumeInfo) -> tuple[object, ...]:
        return v.name, v.path, ago(v.created_at), len(v.used_by)

    headers = ("NAME", "PATH", "CREATED", "USED BY")
    show_list(volumes, as_json=as_json, quiet=quiet, name=lambda v: v.name, headers=headers, row=row, template=template)


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="One that is not there is no error.")
@refs("volume")
def rm(*, force: bool, refs: tuple[str, ...]) -> int:
    """Remove volumes that nothing uses, with what is in them."""
    return for_each(refs, lambda client, ref: client.call("volume.delete", Delete(ref=ref, force=force)) and None)


@click.command("prune")
@click.option("-a", "--all", "every", is_flag=True, help="Named ones too, not only anonymous ones.")
@many("--label", metavar="K[=V]", help="Only those with the label.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@json_option
def prune(*, every: bool, label: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Remove volumes that no container uses, with what is in them."""
    what = "all volumes that no container uses" if every else "all anonymous volumes that no container uses"
    run_prune("volume.prune", Prune(all=every, labels=label), what=what, force=force, as_json=as_json)

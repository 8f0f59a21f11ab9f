"""`drupe snapshot …` and `drupe fork`: pods at one moment, kept, and made again."""

from __future__ import annotations

import click

from drupe.cli import connection
from drupe.cli.group import LazyGroup, Verb
from drupe.cli.lifecycle import for_each
from drupe.cli.options import json_option, option, quiet_option, ref, refs
from drupe.cli.output import ago, human_size, show_list
from drupe.spec.control import Empty, Ref
from drupe.spec.snapshot import Fork, SnapshotCreate, SnapshotInfo, SnapshotRestore

VERBS: dict[str, Verb] = {
    "create": Verb("snapshot:create", "Write a running pod down, memory and files"),
    "ls": Verb("snapshot:ls", "List snapshots"),
    "inspect": Verb("inspect:snapshots", "Show all that is known of snapshots"),
    "rm": Verb("snapshot:rm", "Remove snapshots"),
    "restore": Verb("snapshot:restore", "Make a pod that goes on from a snapshot"),
}

snapshot = LazyGroup("snapshot", VERBS, help="Snapshots: pods at one moment.")


@click.command("create")
@ref("pod")
@click.argument("name", required=False, default="")
def create(*, ref: str, name: str) -> None:
    """Write a running pod down and print the snapshot's id. The pod goes on."""
    click.echo(connection.call("snapshot.create", SnapshotCreate(ref=ref, name=name)).id)


@click.command("ls")
@quiet_option
@json_option
def ls(*, quiet: bool, as_json: bool) -> None:
    """List snapshots."""
    snapshots: list[SnapshotInfo] = connection.call("snapshot.list", Empty()).snapshots

    def row(s: SnapshotInfo) -> tuple[object, ...]:
        return s.id[:12], s.name, s.pod_name, s.kind, ago(s.created_at), human_size(s.size_bytes)

    headers = ("SNAPSHOT ID", "NAME", "POD", "KIND", "CREATED", "SIZE")
    show_list(snapshots, as_json=as_json, quiet=quiet, name=lambda s: s.id, headers=headers, row=row)


@click.command("rm")
@refs("snapshot")
def rm(*, refs: tuple[str, ...]) -> int:
    """Remove snapshots."""
    return for_each(refs, lambda client, ref: client.call("snapshot.delete", Ref(ref=ref)) and None)


@click.command("restore")
@option("--name", default="", metavar="NAME", help="Name of the new pod.")
@click.option("--other-ports", is_flag=True, help="Publish on free ports of the host, not on the same.")
@ref("snapshot")
def restore(*, name: str, other_ports: bool, ref: str) -> None:
    """Make a pod that goes on where the snapshot was made, and print its id."""
    wanted = SnapshotRestore(ref=ref, name=name, other_ports=other_ports)
    click.echo(connection.call("snapshot.restore", wanted).id)


@click.command("fork")
@option("--name", default="", metavar="NAME", help="Name of the new pod.")
@ref("pod")
def fork(*, name: str, ref: str) -> None:
    """Make a second pod that goes on from where POD is, and print its id. POD goes on too."""
    click.echo(connection.call("pod.fork", Fork(ref=ref, name=name)).id)

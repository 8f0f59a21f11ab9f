"""`drupe template …`: machines that were booted once, from which pods start."""

from __future__ import annotations

import click

from drupe.cli import connection
from drupe.cli.group import LazyGroup, Verb
from drupe.cli.lifecycle import for_each
from drupe.cli.options import json_option, option, quiet_option, refs
from drupe.cli.output import ago, human_size, show_list
from drupe.spec.control import Empty, Ref
from drupe.spec.template import TemplateCreate, TemplateInfo
from drupe.spec.units import parse_size

VERBS: dict[str, Verb] = {
    "create": Verb("templates:create", "Boot a machine and keep it, for pods to start from"),
    "ls": Verb("templates:ls", "List templates"),
    "rm": Verb("templates:rm", "Remove templates"),
}

template = LazyGroup("template", VERBS, help="Templates: booted machines, from which pods start.")


@click.command("create")
@option("--memory", default="", metavar="SIZE", help="For pods with this limit of memory.")
@option("--cpus", type=float, metavar="NUMBER", help="For pods with this limit of processors.")
def create(*, memory: str, cpus: float | None) -> None:
    """Boot a machine for pods with these limits, save it, and print the template's id. Pods with the same limits then
    start from it."""
    wanted = TemplateCreate(memory_bytes=parse_size(memory) if memory else None, cpus=cpus)
    click.echo(connection.call("template.create", wanted).id)


@click.command("ls")
@quiet_option
@json_option
def ls(*, quiet: bool, as_json: bool) -> None:
    """List templates."""
    found: list[TemplateInfo] = connection.call("template.list", Empty()).templates

    def row(one: TemplateInfo) -> tuple[object, ...]:
        memory, size = human_size(one.memory_bytes), human_size(one.size_bytes)
        return one.id[:12], memory, one.processors, one.accelerator, one.guest[:12], ago(one.created_at), size

    headers = ("TEMPLATE ID", "MEMORY", "PROCESSORS", "ACCELERATOR", "GUEST", "CREATED", "SIZE")
    show_list(found, as_json=as_json, quiet=quiet, name=lambda one: one.id, headers=headers, row=row)


@click.command("rm")
@refs("template")
def rm(*, refs: tuple[str, ...]) -> int:
    """Remove templates. Pods that started from them go on."""
    return for_each(refs, lambda client, ref: client.call("template.delete", Ref(ref=ref)) and None)

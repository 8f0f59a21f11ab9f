"""`drupe template …`: machines that were booted once, from which pods start."""

from __future__ import annotations

import click

from drupe.cli import connection
from drupe.cli.group import LazyGroup, Verb
from drupe.cli.lifecycle import for_each
from drupe.cli.options import json_option, option, quiet_option, refs
from drupe.cli.output import ago, human_size, show_list
from drupe.cli.prune import prune as run_prune
from drupe.spec.control import Empty, Prune, Ref
from drupe.spec.template import TemplateCreate, TemplateInfo
from drupe.spec.units import parse_size

VERBS: dict[str, Verb] = {
    "create": Verb("templates:create", "Boot a machine and keep it, for pods to start from"),
    "ls": Verb("templates:ls", "List templates"),
    "rm": Verb("templates:rm", "Remove templates"),
    "prune": Verb("templates:prune", "Remove templates from which no pod can start any more"),
}

template = LazyGroup("template", VERBS, help="Templates: booted machines, from which pods start.")


@click.command("create")
@option("--memory", default="", metavar="SIZE", help="For pods with this limit of memory.")
@option("--cpus", type=float, metavar="NUMBER", help="For pods with this limit of processors.")
def create(*, memory: str, cpus: float | None) -> None:
    """Boot a machine for pods with these limits and save it. Prints its id, and to standard error what it is.
    Pods with the same limits then start from it."""
    wanted = TemplateCreate(memory_bytes=parse_size(memory) if memory else None, cpus=cpus)
    made: TemplateInfo = connection.call("template.create", wanted)
    click.echo(made.id)
    size, disk = human_size(made.memory_bytes), human_size(made.size_bytes)
    what = f"memory: {size}, processors: {made.processors}, accelerator: {made.accelerator}"
    click.echo(f"{what}, guest: {made.guest[:12]}; {disk} on disk", err=True)


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


@click.command("prune")
@click.option("-a", "--all", "every", is_flag=True, help="All of them.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@json_option
def prune(*, every: bool, force: bool, as_json: bool) -> None:
    """Remove templates of guest images, QEMUs and settings of before. What started from them goes on."""
    what = "all templates" if every else "all templates from which no pod can start any more"
    run_prune("template.prune", Prune(all=every), what=what, force=force, as_json=as_json)

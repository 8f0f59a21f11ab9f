"""`drupe system …`, `info`, `doctor`, `version`: the daemon and its host."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from drupe.cli import borrowed, connection
from drupe.cli.group import LazyGroup, Verb
from drupe.cli.options import format_option, json_option, many
from drupe.cli.output import ago, human_size, show_json, show_table
from drupe.errors import DrupeError, InvalidState
from drupe.spec.control import DiskUsage, Empty, Prune, SystemInfo

VERBS: dict[str, Verb] = {
    "info": Verb("system:info", "Show the daemon and its host"),
    "doctor": Verb("system:doctor", "Probe what can run here"),
    "capabilities": Verb("capabilities:capabilities", "Show what each kind of sandbox can do"),
    "choose": Verb("capabilities:choose", "Say which kind of sandbox a run would get, and why"),
    "df": Verb("system:df", "Show disk use"),
    "prune": Verb("system:prune", "Remove everything that nothing uses"),
    "events": Verb("events:events", "Show what happens, as it happens"),
    "shutdown": Verb("system:shutdown", "End the daemon; running pods go on"),
}

system = LazyGroup("system", VERBS, help="The daemon and its host.")


@click.command("info")
@json_option
@format_option
def info(*, as_json: bool, template: str | None) -> None:
    """Show the daemon and its host."""
    answer: SystemInfo = connection.call("system.info", Empty())
    if template is not None:
        show_filled(template, answer)
    elif as_json:
        show_json(answer)
    else:
        _show_info(answer)


def _show_info(answer: SystemInfo) -> None:
    fields: dict[str, Any] = msgspec.structs.asdict(answer)
    fields["started_at"] = ago(answer.started_at)
    fields["sandboxes"] = ", ".join(answer.sandboxes)
    recovery = fields.pop("recovery")
    for key, value in fields.items():
        click.echo(f"{key.replace('_', ' ').removesuffix(' at')}: {value}")
    for line in recovery:
        click.echo(f"recovery: {line}")


@click.command("doctor")
@click.option("--fresh", is_flag=True, help="Probe again instead of answering from the cache.")
@json_option
def doctor(*, fresh: bool, as_json: bool) -> int:
    """Probe what can run here; exit 0 when runc sandboxes can, else 1. Needs no daemon."""
    borrowed.needs_own_process()  # what is probed is the caller's own cgroup, session and rights
    from drupe.api.daemon import default_run
    from drupe.services.doctor import can_run_runc, probe_all

    probes = probe_all(fresh=fresh, cache=default_run() / "doctor.json")
    if as_json:
        show_json(probes)
    else:
        rows = [(p.name, p.state, p.cause or "-", p.mend or "-") for p in probes]
        show_table(("PROBE", "STATE", "DETAIL", "MEND"), rows)
    return 0 if can_run_runc(probes) else 1


@click.command("df")
@json_option
def df(*, as_json: bool) -> None:
    """Show the disk use of images, containers and volumes."""
    items: list[DiskUsage] = connection.call("system.df", Empty()).items
    if as_json:
        show_json(items)
        return
    rows = [(i.type, i.total, i.active, human_size(i.size_bytes), human_size(i.reclaimable_bytes)) for i in items]
    show_table(("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"), rows)


@click.command("prune")
@click.option("-a", "--all", "every", is_flag=True, help="Also images that have a name but no container.")
@many("--label", metavar="K[=V]", help="Only those with the label.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@json_option
def prune(*, every: bool, label: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Remove ended containers, and images, networks and volumes that nothing uses."""
    from drupe.cli.prune import prune as run_prune

    what = "all ended containers, and unused images, networks and anonymous volumes"
    run_prune("system.prune", Prune(all=every, labels=label), what=what, force=force, as_json=as_json)


@click.command("shutdown")
def shutdown() -> None:
    """End the daemon. Running pods go on; the next start takes them up again."""
    with connection.connect_running() as client:
        client.call("system.shutdown", Empty())


@click.command("version")
@json_option
@format_option
def version(*, as_json: bool, template: str | None) -> None:
    """Show the versions of the client and, when one runs, of the daemon."""
    versions = {"client": client_version(), "daemon": _daemon_version()}
    if template is not None:
        own, of_daemon = ({"Version": versions[which]} for which in ("client", "daemon"))
        show_filled(template, {"Client": own, "Server": of_daemon})
    elif as_json:
        show_json(versions)
    else:
        click.echo(f"client: {versions['client']}\ndaemon: {versions['daemon'] or 'not running'}")


def show_filled(template: str, value: Any) -> None:
    """One object as a template says."""
    from drupe.cli import formats

    click.echo(formats.read(template).fill(msgspec.to_builtins(value)))


def client_version() -> str:
    """The version of the installed package."""
    from importlib.metadata import version as of_package

    return of_package("drupe")


def _daemon_version() -> str:
    try:
        with connection.connect_running() as client:
            answer: SystemInfo = client.call("system.info", Empty(), timeout_s=2.0)
            return answer.version
    except InvalidState:  # it runs, and is not the one that was meant
        raise
    except DrupeError:
        return ""

"""`drupe setup containerd|docker|podman`: shows or writes what lets them use drupe, and checks what that needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drupe.cli import borrowed
from drupe.cli.options import json_option
from drupe.cli.output import show_json, show_table
from drupe.errors import InvalidArgument

if TYPE_CHECKING:
    from drupe.services.setup.plan import Setup

_TOOLS = ("containerd", "docker", "podman")


@click.command("setup")
@click.argument("tool", type=click.Choice(_TOOLS))
@click.option("--write", is_flag=True, help="Write the files; the old ones are kept beside them.")
@click.option("--dry-run", is_flag=True, help="Show what would be written (what happens without --write).")
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="The tool's configuration file.")
@json_option
def setup(*, tool: str, write: bool, dry_run: bool, config: Path | None, as_json: bool) -> int:
    """Configure containerd, Docker or Podman for drupe, as the version found here wants it, and check what it needs;
    exit 0 when nothing is missing, else 1."""
    if write and dry_run:
        raise InvalidArgument("--write and --dry-run contradict each other")
    borrowed.needs_own_process()  # what is looked at is the caller's own PATH and rights
    from drupe.services.setup import plan as plans

    found = _plan(tool, config)
    if write:
        found.files = [plans.write(file) for file in found.files]
        written, found = found.files, _plan(tool, config)
        found.files = written
    if as_json:
        show_json(found)
    else:
        _show(found, written=write)
    return int(any(probe.state == "fail" for probe in found.checks))


def _plan(tool: str, config: Path | None) -> Setup:
    from importlib import import_module

    from drupe.api.daemon import default_run

    make: Callable[..., Setup] = import_module(f"drupe.services.setup.{tool}").plan
    given: dict[str, Any] = {"config": config} if config else {}
    return make(run_dir=default_run(), **given)


def _show(found: Setup, *, written: bool) -> None:
    click.echo(f"{found.tool} {found.version}")
    for file in found.files:
        if not file.changed:
            click.echo(f"{file.path}: as it should be")
        elif written:
            click.echo(f"{file.path}: written" + (f", the old one is {file.backup}" if file.backup else ""))
        else:
            click.echo(file.diff(), nl=False)
    click.echo()
    rows = [(p.name, p.state, p.cause or "-", p.mend or "-") for p in found.checks]
    show_table(("CHECK", "STATE", "DETAIL", "MEND"), rows)
    changed = any(file.changed for file in found.files)
    if written and changed and found.restart:
        click.echo(f"\nnow: {found.restart}")
    elif changed and not written:
        click.echo(f"\nnothing was written: drupe setup {found.tool} --write does")

"""`drupe guest …`: kernels and roots that microVMs boot. They are files below the root: no daemon is asked."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drupe.cli.errors import exit_code, say
from drupe.cli.group import LazyGroup, Verb
from drupe.cli.options import format_option, json_option, many, option, quiet_option
from drupe.cli.output import ago, human_size, show_list
from drupe.errors import DrupeError, InvalidArgument

if TYPE_CHECKING:
    from drupe.guest import GuestInfo
    from drupe.guest.kernel import Kernel

VERBS: dict[str, Verb] = {
    "build": Verb("guest:build", "Make a guest image from a kernel and the agent"),
    "ls": Verb("guest:ls", "List guest images"),
    "inspect": Verb("guest:inspect", "Show all that is known of guest images"),
    "rm": Verb("guest:rm", "Remove guest images"),
}

guest = LazyGroup("guest", VERBS, help="What microVMs boot: a kernel, and a root with the agent.")

_SHORT_DIGITS = 12
_FILE = click.Path(path_type=Path)


def _root() -> Path:
    from drupe.api.daemon import default_root

    return default_root()


def _kernels() -> Path:
    """Packages of kernels, unpacked: for all roots and clones."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drupe/kernels"


@click.command("build")
@option("--name", default="default", metavar="NAME", help="The image's name; `default` is what pods boot.")
@option("--package", default="", metavar="PACKAGE", help="Debian's package of the kernel (linux-image-cloud-amd64).")
@option("--kernel", type=_FILE, metavar="FILE", help="Instead: a kernel of yours (bzImage or vmlinux).")
@option("--modules", type=_FILE, metavar="DIRECTORY", help="Its modules, as /lib/modules/RELEASE.")
@option(
    "--form", type=click.Choice(["initramfs", "erofs"]), default="initramfs", help="The root: in memory, or a disk."
)
@option("--compression", default="none", metavar="NAME", help="Of an initramfs: none, lz4 or zstd.")
@many("--module", "more", metavar="MODULE", help="A kernel module beyond the usual ones.")
@quiet_option
def build(
    *,
    name: str,
    package: str,
    kernel: Path | None,
    modules: Path | None,
    form: str,
    compression: str,
    more: tuple[str, ...],
    quiet: bool,
) -> None:
    """Make a guest image and print its digest. The same inputs give the same bytes; what is there is not made again."""
    from drupe.guest import build as builder
    from drupe.images.files import storage_errors

    def told(step: str) -> None:
        if not quiet:
            sys.stderr.write(f"{name}: {step}\n")

    with storage_errors("cannot build the guest image"):
        chosen = _kernel(package, kernel, modules)
        agent, runtime = builder.find_agent(), builder.find_runtime()
        plan = builder.Plan(chosen, agent, runtime, form, compression, more)  # type: ignore[arg-type] # click's choice
        click.echo(builder.build(_root(), plan, name, told).digest)


def _kernel(package: str, kernel: Path | None, modules: Path | None) -> Kernel:
    from drupe.guest import kernel as kernels

    if kernel is None and modules is not None:
        raise InvalidArgument("--modules without --kernel")
    if kernel is not None and package:
        raise InvalidArgument("--kernel and --package exclude each other")
    if kernel is not None:
        return kernels.given(kernel, modules)
    return kernels.from_debian(package or kernels.DEFAULT_PACKAGE, _kernels())


@click.command("ls")
@quiet_option
@json_option
@format_option
def ls(*, quiet: bool, as_json: bool, template: str | None) -> None:
    """List guest images, the newest first."""
    from drupe.guest import listed

    def row(info: GuestInfo) -> tuple[object, ...]:
        size = human_size(info.kernel_bytes + info.root_bytes)
        return (
            ",".join(info.names) or "<none>",
            _short(info),
            info.release,
            info.form,
            info.agent,
            size,
            ago(info.created_at),
        )

    headers = ("NAME", "DIGEST", "KERNEL", "FORM", "AGENT", "SIZE", "CREATED")
    show_list(listed(_root()), as_json=as_json, quiet=quiet, name=_short, headers=headers, row=row, template=template)


def _short(info: GuestInfo) -> str:
    return info.digest[:_SHORT_DIGITS]


@click.command("inspect")
@option("-f", "--format", "template", metavar="TEMPLATE", help="As '{{.Digest}}' says.")
@click.argument("names", nargs=-1, required=True, metavar="GUEST...")
def inspect(*, template: str | None, names: tuple[str, ...]) -> None:
    """Show all that is known of guest images, as one JSON list."""
    from drupe.cli.inspect import show
    from drupe.guest import inspect as look

    show([look(_root(), name) for name in names], template)


@click.command("rm")
@click.option(
    "-f", "--force", is_flag=True, help="One that is not there is no error; one of several names goes with all."
)
@click.argument("names", nargs=-1, required=True, metavar="GUEST...")
def rm(*, force: bool, names: tuple[str, ...]) -> int:
    """Remove guest images. Machines that run keep what they have booted."""
    from drupe.guest import remove
    from drupe.images.files import storage_errors

    worst = 0
    for name in names:
        try:
            with storage_errors(f"cannot remove {name}"):
                remove(_root(), name, force=force)
        except DrupeError as error:
            say(str(error), hint=error.hint)
            worst = worst or (1 if error.exit_code == DrupeError.exit_code else exit_code(error))
        else:
            sys.stdout.write(f"{name}\n")
    return worst

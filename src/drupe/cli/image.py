"""`drupe image …` and Docker's top-level spellings of the same."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from drupe.cli import connection, parse
from drupe.cli.group import LazyGroup, Verb
from drupe.cli.lifecycle import for_each
from drupe.cli.options import apply, format_option, json_option, many, option, quiet_option, ref, refs
from drupe.cli.output import ago, human_size, short_id, shorten, show_json, show_list
from drupe.cli.progress import Progress
from drupe.errors import InvalidArgument, NotFound
from drupe.spec.changes import HistoryStep
from drupe.spec.control import (
    ArchiveGet,
    ImageBuild,
    ImageDelete,
    ImageExport,
    ImageImport,
    ImageInfo,
    ImagePull,
    ImagePush,
    ImageTag,
    ListFilter,
    Prune,
    Ref,
)

VERBS: dict[str, Verb] = {
    "ls": Verb("image:ls", "List images"),
    "pull": Verb("image:pull", "Get an image from a registry"),
    "push": Verb("image:push", "Send an image to a registry"),
    "build": Verb("image:build", "Make an image from a directory or tarball"),
    "load": Verb("image:load", "Load images from an archive or OCI layout"),
    "save": Verb("image:save", "Write images as an archive"),
    "import": Verb("image:import_any", "Import an archive, an OCI layout or a root file system"),
    "export": Verb("image:save", "Write images as an archive (same as save)"),
    "history": Verb("image:history", "Show how an image was made"),
    "tag": Verb("image:tag", "Give an image another name"),
    "inspect": Verb("inspect:images", "Show all that is known of images"),
    "rm": Verb("image:rm", "Remove images"),
    "prune": Verb("image:prune", "Remove images that nothing uses"),
}

image = LazyGroup("image", VERBS, help="Images.")

_registry_options = apply(
    option("--creds", metavar="USER:PASSWORD", envvar="DRUPE_CREDS", help="Credentials (also DRUPE_CREDS)."),
    click.option("--insecure", is_flag=True, help="Allow plain HTTP and certificates that are not trusted."),
    option("--ca-file", default="", metavar="FILE", help="Certificate authority to trust."),
    quiet_option,
)


@click.command("images")
@many("-f", "--filter", "filters", metavar="KEY=VALUE", help="label=K[=V], dangling=true, reference=PATTERN.")
@click.option("--digests", is_flag=True, help="Show digests.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten ids.")
@quiet_option
@json_option
@format_option
@click.argument("name", required=False)
def ls(
    *,
    filters: tuple[str, ...],
    digests: bool,
    no_trunc: bool,
    quiet: bool,
    as_json: bool,
    template: str | None,
    name: str | None,
) -> None:
    """List images, or those whose names contain NAME."""
    found = _filtered(filters)
    found = [info for info in found if name is None or any(name in known for known in info.names)]
    if as_json:
        show_json(found)
        return
    rows = [(split_name(known), info) for info in found for known in info.names or ["<none>:<none>"]]
    digests = digests or template is not None

    def identifier(info: ImageInfo) -> str:
        return info.id if no_trunc else short_id(info.id)

    def row(both: tuple[tuple[str, str], ImageInfo]) -> tuple[object, ...]:
        (repository, tag), info = both
        digest = (info.digest,) if digests else ()
        created = info.created[:19].replace("T", " ")
        return repository, tag, *digest, identifier(info), created, human_size(info.size_bytes)

    headers = ("REPOSITORY", "TAG", *(("DIGEST",) if digests else ()), "IMAGE ID", "CREATED", "SIZE")
    if quiet:
        rows = list({info.id: (names, info) for names, info in rows}.values())
    show_list(
        rows,
        as_json=False,
        quiet=quiet,
        name=lambda both: identifier(both[1]),
        headers=headers,
        row=row,
        template=template,
    )


def _filtered(filters: tuple[str, ...]) -> list[ImageInfo]:
    asked = [text.partition("=") for text in filters]
    for key, equals, value in asked:
        if key not in ("label", "dangling", "reference") or not equals or (key, value) == ("dangling", ""):
            text = f"{key}{equals}{value}"
            raise InvalidArgument(f"bad filter {text!r}", hint="label=KEY[=VALUE], dangling=true or reference=PATTERN")
    labels = tuple(value for key, _, value in asked if key == "label")
    found: list[ImageInfo] = connection.call("image.list", ListFilter(labels=labels)).images
    for key, _, value in asked:
        if key == "dangling":
            found = [info for info in found if (not info.names) == parse.flag(value, what=key)]
        elif key == "reference":
            found = [info for info in found if any(_refers(known, value) for known in info.names)]
    return found


def _refers(name: str, pattern: str) -> bool:
    repository = split_name(name)[0]
    return fnmatchcase(name, pattern) or fnmatchcase(repository, pattern)


def split_name(name: str) -> tuple[str, str]:
    """Repository and tag (or digest) of a full image name."""
    repository, at, digest = name.partition("@")
    if at:
        return repository, digest
    head, colon, tag = name.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (name, "<none>")


@click.command("pull")
@option("--platform", default="", metavar="OS/ARCH[/VARIANT]", help="Platform, if not this one.")
@click.option("--force", is_flag=True, help="Also when it is here already.")
@_registry_options
@refs("image")
def pull(
    *, refs: tuple[str, ...], platform: str, force: bool, creds: str | None, insecure: bool, ca_file: str, quiet: bool
) -> None:
    """Get images from their registries and print their digests."""
    for name in refs:
        request = ImagePull(ref=name, platform=platform, auth=creds, insecure=insecure, ca_file=ca_file, force=force)
        with Progress(quiet=quiet) as progress:
            info: ImageInfo = connection.call("image.pull", request, on_item=progress.show)
        click.echo(info.digest)


@click.command("push")
@_registry_options
@ref("image", name="name")
@click.argument("target", required=False, default="")
def push(*, name: str, target: str, creds: str | None, insecure: bool, ca_file: str, quiet: bool) -> None:
    """Send IMAGE to its registry, or as TARGET to another, and print its digest."""
    request = ImagePush(ref=name, target=target, auth=creds, insecure=insecure, ca_file=ca_file)
    with Progress(quiet=quiet) as progress:
        info: ImageInfo = connection.call("image.push", request, on_item=progress.show)
    click.echo(info.digest)


@click.command("build")
@option("-t", "--tag", required=True, metavar="NAME", help="Name of the image.")
@option("--base", default="", metavar="IMAGE", help="Image to put the new layer on.")
@option("--target", default="/", metavar="DIR", help="Where the files go in the image.", show_default=True)
@option("--entrypoint", parse=parse.command, metavar="COMMAND", help="Entrypoint: a JSON list or shell words.")
@option("--cmd", parse=parse.command, metavar="COMMAND", help="Default arguments: a JSON list or shell words.")
@many("-e", "--env", parse=parse.env, metavar="KEY=VALUE", help="Environment variable.")
@option("-w", "--workdir", metavar="DIR", help="Working directory.")
@option("-u", "--user", metavar="USER[:GROUP]", help="User.")
@many("-l", "--label", parse=parse.label, metavar="KEY=VALUE", help="Label.")
@many("--expose", metavar="PORT[/PROTO]", help="Port that it serves.")
@many("--volume", metavar="DIR", help="Directory that is a volume.")
@option("--stop-signal", metavar="SIGNAL", help="Signal that asks for the end.")
@option("--source-date-epoch", type=int, envvar="SOURCE_DATE_EPOCH", metavar="SECONDS", help="Clamp times to this.")
@quiet_option
@click.argument("path", metavar="DIRECTORY|TARBALL|-")
def build(
    *,
    tag: str,
    base: str,
    target: str,
    entrypoint: tuple[str, ...] | None,
    cmd: tuple[str, ...] | None,
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    label: tuple[tuple[str, str], ...],
    expose: tuple[str, ...],
    volume: tuple[str, ...],
    stop_signal: str | None,
    source_date_epoch: int | None,
    quiet: bool,
    path: str,
) -> None:
    """Make an image: one layer from a directory or a tarball, on a base image or on nothing; print its digest."""
    request = ImageBuild(
        tag=tag,
        base=base,
        path=_host_path(path) if path != "-" else "",
        target=target,
        entrypoint=entrypoint,
        cmd=cmd,
        env=env,
        cwd=workdir,
        user=user,
        labels=dict(label),
        ports=expose,
        volumes=volume,
        stop_signal=stop_signal,
        source_date_epoch=source_date_epoch,
    )
    with Progress(quiet=quiet) as progress:
        fds = {"data": 0} if path == "-" else {}
        info: ImageInfo = connection.call("image.build", request, fds=fds, on_item=progress.show)
    click.echo(info.digest)


def _host_path(path: str) -> str:
    if not Path(path).exists():
        raise NotFound(f"no such file or directory: {path}")
    return os.path.abspath(path)  # noqa: PTH100


def _import(path: str, *, quiet: bool, **fields: Any) -> list[ImageInfo]:
    # A file is opened here, with the caller's rights; a directory (an OCI layout) can only be named.
    with contextlib.ExitStack() as stack:
        fds: dict[str, int] = {}
        if path == "-":
            fds["data"] = 0
        elif Path(_host_path(path)).is_dir():
            fields["path"] = _host_path(path)
        else:
            fields["title"] = Path(path).name
            fds["data"] = stack.enter_context(Path(path).open("rb", buffering=0)).fileno()
        progress = stack.enter_context(Progress(quiet=quiet))
        images: list[ImageInfo] = connection.call(
            "image.import", ImageImport(**fields), fds=fds, on_item=progress.show
        ).images
    return images


def _name(info: ImageInfo) -> str:
    return info.names[0] if info.names else info.digest


@click.command("load")
@option("-i", "--input", "path", default="-", metavar="FILE|DIR", help="Archive or OCI layout (standard input).")
@option("--tag", default="", metavar="NAME", help="Name, if the archive has none.")
@quiet_option
def load(*, path: str, tag: str, quiet: bool) -> None:
    """Load images from a docker-archive, an OCI archive or an OCI layout."""
    _refuse_terminal(path, sys.stdin.isatty())
    for info in _import(path, quiet=quiet, tag=tag):
        for name in info.names or [info.digest]:
            click.echo(name if quiet else f"Loaded image: {name}")


@click.command("import")
@option(
    "--format", "kind", default="auto", metavar="FORMAT", help="auto, oci, docker-archive, oci-archive, rootfs, wasm."
)
@option("--tag", default="", metavar="NAME", help="Name to give.")
@quiet_option
@click.argument("path", metavar="FILE|DIR|-")
def import_any(*, kind: str, tag: str, quiet: bool, path: str) -> None:
    """Import an image archive, an OCI layout or a root file system."""
    for info in _import(path, quiet=quiet, format=kind, tag=tag):
        click.echo(_name(info))


_CHANGES = {"CMD": "Cmd", "ENTRYPOINT": "Entrypoint", "ENV": "Env", "WORKDIR": "WorkingDir", "USER": "User"}


def change(text: str) -> tuple[str, Any]:
    """One --change: a Dockerfile line (CMD, ENTRYPOINT, ENV, WORKDIR, USER) as a field of the image's config."""
    word, _, rest = text.strip().partition(" ")
    key = _CHANGES.get(word.upper())
    if key is None or not rest:
        raise InvalidArgument(f"bad change {text!r}", hint=f"known: {', '.join(_CHANGES)}")
    if key in ("Cmd", "Entrypoint"):
        return key, list(parse.command(rest)) if rest.startswith("[") else ["/bin/sh", "-c", rest]
    return key, [rest] if key == "Env" else rest


def settings(changes: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """All changes together."""
    config: dict[str, Any] = {}
    for key, value in changes:
        config[key] = config.get(key, []) + value if key == "Env" else value
    return config


@click.command("import")
@many("-c", "--change", "changes", parse=change, metavar="LINE", help='Dockerfile line, like CMD ["sh"].')
@quiet_option
@click.argument("path", metavar="TARBALL|-")
@click.argument("name", required=False, default="")
def import_rootfs(*, changes: tuple[tuple[str, Any], ...], quiet: bool, path: str, name: str) -> None:
    """Make an image of one layer from the tarball of a root file system (as Docker's import); print its digest."""
    config = settings(changes)
    for info in _import(path, quiet=quiet, format="rootfs", tag=name, config=config):
        click.echo(info.digest)


@click.command("history")
@click.option("--no-trunc", is_flag=True, help="Do not shorten what made a layer.")
@click.option("-H", "--human/--no-human", "human", default=True, help="Sizes and times for people.")
@quiet_option
@json_option
@format_option
@ref("image", name="name")
def history(*, name: str, no_trunc: bool, human: bool, quiet: bool, as_json: bool, template: str | None) -> None:
    """Show how an image was made, its last step first."""
    found = connection.call("image.history", Ref(ref=name))
    steps: list[HistoryStep] = found.steps
    last = found.id if no_trunc else found.id.removeprefix("sha256:")[:12]
    width = 10_000 if no_trunc else 45
    ids = {id(step): last if number == 0 else "<missing>" for number, step in enumerate(steps)}

    def row(step: HistoryStep) -> tuple[str, ...]:
        created = ago(_seconds(step.created)) if human and step.created else step.created or "N/A"
        size = human_size(step.size_bytes) if human else str(step.size_bytes)
        return ids[id(step)], created, shorten(step.created_by, width), size, step.comment

    headers = ("IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT")
    show_list(
        steps,
        as_json=as_json,
        quiet=quiet,
        name=lambda step: ids[id(step)],
        headers=headers,
        row=row,
        template=template,
    )


def _seconds(created: str) -> float:
    """Of RFC 3339, which may have nanoseconds. 0: nobody knows."""
    try:
        return datetime.datetime.fromisoformat(
            re.sub(r"(\.\d{6})\d+", r"\1", created).replace("Z", "+00:00")
        ).timestamp()
    except ValueError:
        return 0.0


@click.command("save")
@option("-o", "--output", "path", default="-", metavar="FILE", help="File to write (standard output).")
@option("--format", "kind", type=click.Choice(["oci-archive", "docker-archive"]), default="oci-archive", help="Form.")
@refs("image")
def save(*, path: str, kind: str, refs: tuple[str, ...]) -> None:
    """Write images as an archive."""
    with _output(path) as fd, Progress(quiet=path == "-") as progress:
        request = ImageExport(refs=refs, format=kind)
        connection.call("image.export", request, fds={"data": fd}, on_item=progress.show)


@click.command("export")
@option("-o", "--output", "path", default="-", metavar="FILE", help="File to write (standard output).")
@ref("container", name="name")
def export_container(*, path: str, name: str) -> None:
    """Write the whole file system of a container as a tar."""
    with _output(path) as fd:
        connection.call("file.get_archive", ArchiveGet(ref=name, path="/"), fds={"data": fd})


@contextlib.contextmanager
def _output(path: str) -> Iterator[int]:
    """The descriptor to write to; a file appears under its name only when it is whole."""
    _refuse_terminal(path, sys.stdout.isatty())
    if path == "-":
        yield 1
        return
    if Path(path).exists() and not Path(path).is_file():  # a pipe or device: written as it is
        with Path(path).open("wb", buffering=0) as stream:
            yield stream.fileno()
        return
    partial = f"{path}.{os.getpid()}.part"
    try:
        with Path(partial).open("xb", buffering=0) as stream:
            yield stream.fileno()
        Path(partial).replace(path)
    except OSError as error:
        raise InvalidArgument(f"cannot write {path}", cause=error.strerror or str(error)) from None
    finally:
        Path(partial).unlink(missing_ok=True)


def _refuse_terminal(path: str, terminal: bool) -> None:
    if path == "-" and terminal:
        raise InvalidArgument("an archive is not read from or written to a terminal", hint="name a file, or use a pipe")


@click.command("tag")
@ref("image", name="source")
@click.argument("target")
def tag(*, source: str, target: str) -> None:
    """Give the image SOURCE the further name TARGET."""
    connection.call("image.tag", ImageTag(source=source, target=target))


@click.command("rmi")
@click.option("-f", "--force", is_flag=True, help="Also when it has other names or stopped containers.")
@refs("image")
def rm(*, force: bool, refs: tuple[str, ...]) -> int:
    """Remove images by name or id; the last name takes the data with it."""

    def act(client: Any, name: str) -> str:
        removed = client.call("image.delete", ImageDelete(ref=name, force=force)).removed
        return "\n".join(removed)

    return for_each(refs, act)


@click.command("prune")
@click.option("-a", "--all", "every", is_flag=True, help="Also those that have a name but no container.")
@many("--label", metavar="K[=V]", help="Only those with the label.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@json_option
def prune(*, every: bool, label: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Remove images that nothing uses."""
    from drupe.cli.prune import prune as run_prune

    what = "all images without a container" if every else "all images without a name"
    run_prune("image.prune", Prune(all=every, labels=label), what=what, force=force, as_json=as_json)

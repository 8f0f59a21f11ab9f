"""`drupe run` and `drupe create`: a new pod of one container, or a further container of an existing pod."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from drupe.cli import connection, podspec, session, terminal
from drupe.cli.completion import completer
from drupe.cli.options import apply, option
from drupe.errors import DrupeError, InvalidArgument, NotFound
from drupe.spec import Choice, ContainerSpec, ContainerStatus, PodSpec, PodStatus, PortMapping
from drupe.spec.control import (
    ContainerCreate,
    ContainerStart,
    Delete,
    ImageImport,
    ImageList,
    ImagePull,
    Kill,
    PodCreate,
    PodRun,
    Ref,
    Wait,
)

if TYPE_CHECKING:
    from drupe.rpc.client import Client

T = TypeVar("T")

create_options = apply(
    podspec.container_options,
    podspec.resource_options,
    podspec.pod_options,
    click.option("--publish-all", "-P", is_flag=True, help="Publish all ports that the image exposes."),
    option("--pod", metavar="NAME", help="Join an existing pod."),
    option("--pull", type=click.Choice(["missing", "never", "always"]), default="missing", help="When to pull."),
    option("--platform", default="", metavar="OS/ARCH", help="Platform to pull."),
    option("--cidfile", metavar="FILE", help="Write the container's id to a file."),
    click.argument("image", shell_complete=completer("image")),
    click.argument("command", nargs=-1, type=click.UNPROCESSED),
)

_VERB = {"ignore_unknown_options": False, "allow_interspersed_args": False}


@click.command("run", context_settings=_VERB)
@click.option("-d", "--detach", is_flag=True, help="Run in the background and print the id.")
@click.option("--rm", is_flag=True, help="Remove the pod when the container ends.")
@click.option("--explain", is_flag=True, help="Say on standard error which kind of sandbox it gets, and why.")
@option("--detach-keys", default=terminal.DEFAULT_DETACH_KEYS, metavar="KEYS", help="Keys that detach a terminal.")
@create_options
@click.pass_context
def run(
    ctx: click.Context,
    /,
    *,
    detach: bool,
    rm: bool,
    detach_keys: str,
    explain: bool,
    image: str,
    command: tuple[str, ...],
    **flags: Any,
) -> int:
    """Run COMMAND in a new pod of one container made from IMAGE."""
    if not detach:
        session.check_terminal(stdin=flags["interactive"], tty=flags["tty"])
    session.parse_keys(detach_keys)
    with connection.connect() as client:
        plan = Plan(ctx, client, image, command, flags, remove=rm)
        if explain:
            plan.explain()
        return plan.run_detached() if detach else plan.run_here(detach_keys)


@click.command("create", context_settings=_VERB)
@click.option("--rm", is_flag=True, help="Remove the pod when the container ends.")
@create_options
@click.pass_context
def create(ctx: click.Context, /, *, rm: bool, image: str, command: tuple[str, ...], **flags: Any) -> None:
    """Create a pod of one container from IMAGE without starting it, and print the container's id."""
    with connection.connect() as client:
        plan = Plan(ctx, client, image, command, flags, remove=rm)
        click.echo(plan.with_image(plan.create).id)


class Plan:
    """What the flags of `run` ask for, and how it is carried out over the control API."""

    def __init__(
        self,
        ctx: click.Context,
        client: Client,
        image: str,
        argv: tuple[str, ...],
        flags: dict[str, Any],
        *,
        remove: bool,
    ) -> None:
        self.client = client
        self.flags = flags
        self.image = image = self._imported(image)
        self.join: str | None = flags["pod"]
        self.remove = remove
        if self.join is not None:
            _check_join(ctx, self.join)
        self._check_cidfile()
        self.container = podspec.container(flags, image, argv)
        if remove and self.container.restart.name != "no":
            raise InvalidArgument("--rm and --restart exclude each other", hint="leave one of them out")
        self.window = session.Window(tty=self.container.tty)
        if flags["pull"] == "always":
            self._pull()

    def _imported(self, image: str) -> str:
        """The image to run: a module's file becomes one, without a name, that `image prune` removes."""
        from drupe.images.bare import bare_module

        path = bare_module(image)
        if path is None:
            return image
        with path.open("rb") as file:
            request = ImageImport(format="wasm", title=path.name)
            found: ImageList = self.client.call("image.import", request, fds={"data": file.fileno()})
        return found.images[0].digest

    def _check_cidfile(self) -> None:
        path = self.flags["cidfile"]
        if path and Path(path).exists():
            raise InvalidArgument(f"container id file {path} exists", hint="remove it, or name another")

    def pod(self) -> PodSpec:
        """The pod of one."""
        spec = pod_of(self.container, self.flags, remove=self.remove)
        return self._publish_exposed(spec) if self.flags["publish_all"] else spec

    def _publish_exposed(self, spec: PodSpec) -> PodSpec:
        info = self.client.call("image.inspect", Ref(ref=self.image))
        known = {(port.container_port, port.protocol) for port in spec.ports}
        exposed = (exposed_port(text) for text in info.config.get("ExposedPorts") or ())
        more = tuple(port for port in exposed if (port.container_port, port.protocol) not in known)
        return msgspec.structs.replace(spec, ports=spec.ports + more)

    def explain(self) -> None:
        """Say which kind of sandbox it gets."""
        from drupe.cli.capabilities import explained

        if self.join is not None:
            raise InvalidArgument("--explain with --pod says nothing: the pod has its kind", hint="drupe inspect it")
        params = PodCreate(spec=self.pod())
        choice: Choice = self.with_image(lambda: self.client.call("system.choose", params))
        sys.stderr.writelines(f"{line}\n" for line in explained(choice))

    def create(self) -> ContainerStatus:
        """Make the container without starting it."""
        if self.join is not None:
            request = ContainerCreate(pod=self.join, spec=self.container)
            status: ContainerStatus = self.client.call("container.create", request)
        else:
            pod: PodStatus = self.client.call("pod.create", PodCreate(spec=self.pod(), auto_stop=True))
            status = pod.containers[0]
        self._write_cidfile(status.id)
        return status

    def start(self, fds: dict[str, int]) -> ContainerStatus:
        """Make and start the container, its streams connected to `fds` from the first byte on; all or nothing."""
        if self.join is not None:
            return self._start_in_pod(fds)
        params = PodRun(spec=self.pod(), rows=self.window.rows, cols=self.window.columns)
        pod: PodStatus = self.client.call("pod.run", params, fds=fds)
        self._write_cidfile(pod.containers[0].id)
        return pod.containers[0]

    def _start_in_pod(self, fds: dict[str, int]) -> ContainerStatus:
        pod: PodStatus = self.client.call("pod.status", Ref(ref=self.join or ""))
        if pod.state == "ready":  # `drupe pod create` made it for this
            self.client.call("pod.start", Ref(ref=pod.id))
        made = self.create()
        request = ContainerStart(ref=made.id, rows=self.window.rows, cols=self.window.columns)
        try:
            started: ContainerStatus = self.client.call("container.start", request, fds=fds)
        except DrupeError:
            self.client.call("container.delete", Delete(ref=made.id, force=True))
            raise
        return started

    def run_detached(self) -> int:
        if self.remove and self.join is not None:
            raise InvalidArgument("--rm with --pod needs a client that waits", hint="leave out --rm or -d")
        sys.stdout.write(f"{self.with_image(lambda: self.start({})).id}\n")
        return 0

    def run_here(self, keys: str) -> int:
        """Run in the foreground: our streams, our signals; returns the workload's exit code."""
        return self.with_image(lambda: self._session(keys))

    def _session(self, keys: str) -> int:
        tty = self.container.tty
        fds = session.stdio(stdin=self.container.stdin, tty=tty)
        started: list[ContainerStatus] = []

        def send(name: str) -> None:
            session.side_call("container.kill", Kill(ref=started[0].id, signal=name))

        signals = session.Signals(send)
        try:
            with signals.forwarding(), self.window.watched(), session.interactive(fds, signals, keys=keys) as given:
                started.append(self.start(given))
                signals.ready()
                self.window.ready(started[0].id)
                # not before all of it has gone: what it used is free for the next command
                condition = "removed" if self.remove and self.join is None else "stopped"
                end = self.client.call("container.wait", Wait(ref=started[0].id, condition=condition))
        except session.Detached:
            return session.detached(started[0].name if started else self.image)
        if self.remove and self.join is not None:
            self.client.call("container.delete", Delete(ref=started[0].id))
        return session.finish(end, name=started[0].name, memory_bytes=self.container.resources.memory_bytes)

    def with_image(self, call: Callable[[], T]) -> T:
        """`call`, and once more after a pull when the image was what it lacked and --pull allows it.

        The pull lies outside the call: a session has the signals and the terminal, and a pull wants to be interrupted.
        """
        try:
            return call()
        except NotFound:
            if self.flags["pull"] == "never" or self._has_image():
                raise
        self._pull()
        return call()

    def _has_image(self) -> bool:
        try:
            self.client.call("image.inspect", Ref(ref=self.image))
        except NotFound:
            return False
        return True

    def _pull(self) -> None:
        from drupe.cli.progress import Progress

        with Progress() as progress:
            try:
                params = ImagePull(ref=self.image, platform=self.flags["platform"])
                self.client.call("image.pull", params, on_item=progress.show)
            except DrupeError as error:
                raise NotFound(
                    f"image {self.image} is not here and cannot be pulled",
                    cause=str(error),
                    hint=error.hint or "see what is here with: drupe images",
                ) from error

    def _write_cidfile(self, identifier: str) -> None:
        if self.flags["cidfile"]:
            try:
                Path(self.flags["cidfile"]).write_text(identifier)
            except OSError as error:
                from drupe.cli.errors import say

                say(f"cannot write {self.flags['cidfile']}: {os.strerror(error.errno or 0)}")


def pod_of(container: ContainerSpec, flags: dict[str, Any], **more: Any) -> PodSpec:
    """The pod among `flags` that is made for one container: named, labelled and annotated as it is."""
    return podspec.pod(
        flags,
        name=container.name,
        labels=container.labels,
        annotations=container.annotations,
        containers=(container,),
        **more,
    )


def exposed_port(text: str) -> PortMapping:
    """An image's "80/tcp" as a mapping to any free host port."""
    port, _, protocol = text.partition("/")
    return PortMapping(container_port=int(port), protocol=protocol or "tcp")  # type: ignore[arg-type]


def _check_join(ctx: click.Context, pod: str) -> None:
    given = podspec.pod_flags_given(ctx)
    if given:
        raise InvalidArgument(
            f"{', '.join(given)} can't be given with --pod {pod}",
            hint="these belong to the pod: set them when it is made",
        )

"""start, stop, restart, kill, pause, resume, wait, rm: one call for each named container, the failures told at the end.

A pod made for its containers (`drupe run`, `drupe create`) starts, ends and goes with them: the daemon sees to it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from drupe.cli import connection, parse, session, terminal
from drupe.cli.errors import exit_code, say
from drupe.cli.options import option, refs
from drupe.errors import DrupeError, InvalidArgument, InvalidTransition, NotFound
from drupe.spec.control import ContainerStart, Delete, Kill, ListFilter, Ref, Stop, Wait
from drupe.spec.status import ContainerStatus, ExitStatus

if TYPE_CHECKING:
    from drupe.rpc.client import Client


def for_each(refs: tuple[str, ...], act: Callable[[Client, str], str | None], *, done: str | None = None) -> int:
    """Call `act` for every ref, print what it answers (None: the ref), show each failure; the first one's exit code."""
    worst = 0
    with connection.connect() as client:
        for ref in refs:
            try:
                sys.stdout.write(f"{act(client, ref) or ref}\n")
            except DrupeError as error:
                say(str(error), hint=error.hint)
                worst = worst or (1 if error.exit_code == DrupeError.exit_code else exit_code(error))
    return worst


@click.command("start")
@click.option("-a", "--attach", is_flag=True, help="Connect output, pass signals on, end with its exit code.")
@click.option("-i", "--interactive", is_flag=True, help="Connect input too.")
@option("--detach-keys", default=terminal.DEFAULT_DETACH_KEYS, metavar="KEYS", help="Keys that detach a terminal.")
@refs("container")
def start(*, attach: bool, interactive: bool, detach_keys: str, refs: tuple[str, ...]) -> int:
    """Start containers that were created, or have ended."""
    if attach or interactive:
        if len(refs) > 1:
            raise InvalidArgument("only one container can be attached at a time")
        return _start_here(refs[0], stdin=interactive, keys=detach_keys)
    return for_each(refs, _start)


def _start(client: Client, ref: str) -> None:
    try:
        client.call("container.start", ContainerStart(ref=ref))
    except InvalidTransition as error:
        if error.details.get("from") != "running":  # it is what was asked for: no error, as in Docker
            raise


def _start_here(ref: str, *, stdin: bool, keys: str) -> int:
    with connection.connect() as client:
        status: ContainerStatus = client.call("container.status", Ref(ref=ref))
        name = status.name or status.id
        session.check_terminal(stdin=stdin, tty=status.tty)
        fds = session.stdio(stdin=stdin, tty=status.tty)
        signals = session.Signals(lambda name: session.side_call("container.kill", Kill(ref=status.id, signal=name)))
        window = session.Window(tty=status.tty)
        request = ContainerStart(ref=status.id, rows=window.rows, cols=window.columns)
        try:
            with signals.forwarding(), window.watched(), session.interactive(fds, signals, keys=keys) as given:
                client.call("container.start", request, fds=given)
                signals.ready()
                window.ready(status.id)
                end: ExitStatus = client.call("container.wait", Wait(ref=status.id))
        except session.Detached:
            return session.detached(name)
        return session.finish(end, name=name)


def stop_one(client: Client, ref: str, timeout_s: float | None) -> None:
    """Stop one container; a grace of 0 is SIGKILL at once."""
    client.call("container.stop", Stop(ref=ref, timeout_s=timeout_s, force=timeout_s == 0))


_time = option("-t", "--time", "--timeout", "timeout_s", parse=parse.duration, metavar="DURATION", help="Grace.")


@click.command("stop")
@_time
@refs("container")
def stop(*, timeout_s: float | None, refs: tuple[str, ...]) -> int:
    """Stop containers: their stop signal, and SIGKILL when the grace is over."""
    return for_each(refs, lambda client, ref: stop_one(client, ref, timeout_s))


@click.command("restart")
@_time
@refs("container")
def restart(*, timeout_s: float | None, refs: tuple[str, ...]) -> int:
    """Stop containers and start them again."""

    def again(client: Client, ref: str) -> None:
        stop_one(client, ref, timeout_s)
        _start(client, ref)

    return for_each(refs, again)


def signal_name(text: str) -> str:
    """A signal's name without SIG, from "9", "KILL", "sigkill", "RTMIN+3". Raises InvalidArgument."""
    name = text.upper().removeprefix("SIG")
    if name.isdigit() and 0 < int(name) <= 64:
        return name
    base = name.partition("+")[0].partition("-")[0]
    if base in ("RTMIN", "RTMAX") or f"SIG{name}" in signal.Signals.__members__:
        return name
    raise InvalidArgument(f"no such signal {text!r}", hint="use a name such as TERM, or a number from 1 to 64")


@click.command("kill")
@option("-s", "--signal", "name", parse=signal_name, default="KILL", metavar="SIGNAL", help="Signal (KILL).")
@click.option("-a", "--all", "every", is_flag=True, help="To every process of the container, not only its first.")
@refs("container")
def kill(*, name: str, every: bool, refs: tuple[str, ...]) -> int:
    """Send a signal to containers."""
    return for_each(
        refs, lambda client, ref: client.call("container.kill", Kill(ref=ref, signal=name, all=every)) and None
    )


def _simple(method: str) -> Callable[[Client, str], None]:
    def act(client: Client, ref: str) -> None:
        client.call(method, Ref(ref=ref))

    return act


@click.command("pause")
@refs("container")
def pause(*, refs: tuple[str, ...]) -> int:
    """Freeze all processes of containers."""
    return for_each(refs, _simple("container.pause"))


@click.command("resume")
@refs("container")
def resume(*, refs: tuple[str, ...]) -> int:
    """Let paused containers go on."""
    return for_each(refs, _simple("container.resume"))


@click.command("wait")
@click.option("--condition", type=click.Choice(["stopped", "removed"]), default="stopped", help="What to wait for.")
@option("--timeout", "timeout_s", parse=parse.duration, metavar="DURATION", help="Give up after so long.")
@refs("container")
def wait(*, condition: str, timeout_s: float | None, refs: tuple[str, ...]) -> int:
    """Wait until containers end and print their exit codes."""

    def one(client: Client, ref: str) -> str:
        end: ExitStatus = client.call("container.wait", Wait(ref=ref, condition=condition, timeout_s=timeout_s))
        return str(end.code)

    return for_each(refs, one)


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="Stop them first; one that is not there is no error.")
@click.option("-v", "--volumes/--keep-volumes", default=True, help="Anonymous volumes too (default).")
@click.option("-a", "--all", "every", is_flag=True, help="All that have ended (with -f: all).")
@refs("container", required=False)
def rm(*, force: bool, volumes: bool, every: bool, refs: tuple[str, ...]) -> int:
    """Remove containers."""
    if every == bool(refs):
        raise click.UsageError("name the containers to remove, or say --all", click.get_current_context())
    return for_each(_all(force) if every else refs, lambda client, ref: _remove(client, ref, force, volumes))


def _all(live_too: bool) -> tuple[str, ...]:
    states = () if live_too else ("ready", "stopped", "failed")
    return tuple(c.id for c in connection.call("container.list", ListFilter(states=states)).containers)


def _remove(client: Client, ref: str, force: bool, volumes: bool) -> None:
    try:
        client.call("container.delete", Delete(ref=ref, force=force, volumes=volumes))
    except NotFound:
        if not force:
            raise

"""`drupe attach`: our standard streams connected to a running container's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from drupe.cli import connection, session, terminal
from drupe.cli.options import option, ref
from drupe.errors import InvalidState
from drupe.spec.control import Kill, Ref
from drupe.spec.status import ContainerStatus, ExitStatus

if TYPE_CHECKING:
    from drupe.rpc.client import Client


@click.command("attach")
@click.option("--no-stdin", is_flag=True, help="Do not connect standard input.")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Pass our signals on (default).")
@option("--detach-keys", default=terminal.DEFAULT_DETACH_KEYS, metavar="KEYS", help="Keys that detach a terminal.")
@ref("container")
def attach(*, no_stdin: bool, sig_proxy: bool, detach_keys: str, ref: str) -> int:
    """Connect to the standard streams of CONTAINER until it ends; ends with its exit code."""
    with connection.connect() as client:
        status: ContainerStatus = client.call("container.status", Ref(ref=ref))
        if status.state not in ("running", "paused"):
            raise InvalidState(
                f"container {ref} is {status.state}, not running", hint=f"start it: drupe start -a {ref}"
            )
        return attach_here(client, status, stdin=not no_stdin, proxy=sig_proxy, keys=detach_keys)


def attach_here(client: Client, status: ContainerStatus, *, stdin: bool, proxy: bool, keys: str) -> int:
    """Attach in the foreground and return the exit code."""
    fds = session.stdio(stdin=stdin, tty=status.tty)
    signals = session.Signals(lambda name: session.side_call("container.kill", Kill(ref=status.id, signal=name)))
    signals.ready()
    window = session.Window(tty=status.tty)
    forwarding = signals.forwarding() if proxy else terminal.handlers({})
    try:
        with forwarding, window.watched(), session.interactive(fds, signals, keys=keys) as given:
            window.rows = window.columns = 0  # whatever size it has: it takes ours
            window.ready(status.id)
            end: ExitStatus = client.call("container.attach", Ref(ref=status.id), fds=given)
    except session.Detached:
        return session.detached(status.name or status.id)
    return session.finish(end, name=status.name or status.id)

"""`drupe exec`: a further process in a running container."""

from __future__ import annotations

import sys

import click

from drupe.cli import connection, parse, session, terminal
from drupe.cli.completion import completer
from drupe.cli.options import many, option
from drupe.cli.podspec import parse_env_files
from drupe.spec import ExecSpec, ExitStatus
from drupe.spec.control import ExecKill, ExecStart, ExecStarted


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Leave it running and return at once.")
@click.option("-i", "--interactive", is_flag=True, help="Connect standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@many("-e", "--env", parse=parse.env, metavar="KEY[=VALUE]", help="Environment variable.")
@many("--env-file", metavar="FILE", help="File of environment variables.")
@option("-w", "--workdir", metavar="DIR", help="Working directory.")
@option("-u", "--user", metavar="USER[:GROUP]", help="User name or id.")
@click.option("--privileged", is_flag=True, help="All capabilities.")
@many("--cap-add", metavar="CAP", help="Capability to add.")
@option("--timeout", parse=parse.time_limit, metavar="DURATION", help="Kill it after so long (exit code 137).")
@option("--detach-keys", default=terminal.DEFAULT_DETACH_KEYS, metavar="KEYS", help="Keys that detach a terminal.")
@click.argument("container", shell_complete=completer("container"))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    *,
    detach: bool,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    privileged: bool,
    cap_add: tuple[str, ...],
    timeout: float | None,
    detach_keys: str,
    container: str,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND in the running CONTAINER and end with its exit code."""
    if not detach:
        session.check_terminal(stdin=interactive, tty=tty)
    window = session.Window(tty=tty)
    spec = ExecSpec(
        argv=command,
        env=(*parse_env_files(env_file), *env),
        cwd=workdir,
        user=user,
        tty=tty,
        rows=window.rows,
        cols=window.columns,
        privileged=privileged,
        cap_add=cap_add,
        timeout_s=timeout,
    )
    if detach:
        connection.call("exec.start", ExecStart(ref=container, spec=spec, detach=True))
        return 0
    return _run_here(container, spec, window, stdin=interactive, keys=detach_keys)


def _run_here(ref: str, spec: ExecSpec, window: session.Window, *, stdin: bool, keys: str) -> int:
    fds = session.stdio(stdin=stdin, tty=spec.tty)
    ids: list[str] = []

    def send(name: str) -> None:
        session.side_call("exec.kill", ExecKill(ref=ref, exec_id=ids[0], signal=name))

    signals = session.Signals(send)

    def started(item: ExecStarted) -> None:
        ids.append(item.exec_id)
        signals.ready()
        window.ready(ref, exec_id=item.exec_id)

    try:
        with (
            connection.connect() as client,
            signals.forwarding(),
            window.watched(),
            session.interactive(fds, signals, keys=keys) as given,
        ):
            end: ExitStatus = client.call("exec.start", ExecStart(ref=ref, spec=spec), fds=given, on_item=started)
    except session.Detached:
        return session.detached(ref)
    if end.reason == "Timeout":
        sys.stderr.write(f"drupe: {spec.argv[0]} was killed: its time of {spec.timeout_s:g} s was up\n")
    return end.code

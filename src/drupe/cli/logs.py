"""`drupe logs`: what a container wrote."""

from __future__ import annotations

import sys

import click

from drupe.cli import connection, parse
from drupe.cli.options import json_option, option, ref
from drupe.cli.output import iso, show_json
from drupe.errors import InvalidArgument
from drupe.spec.control import LogLine, Logs, Ref


def _tail(text: str) -> int | None:
    if text == "all":
        return None
    number = parse.integer(text, what="number of lines")
    if number < 0:
        raise InvalidArgument(f"bad number of lines {text!r}", hint="write 0 or more, or all")
    return number


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@option("-n", "--tail", "--last", metavar="N", default="all", help="Only the last N lines.")
@option("--since", parse=parse.moment, metavar="TIME", help="From this time, or so long ago (10m).")
@option("--until", parse=parse.moment, metavar="TIME", help="Up to this time, or so long ago.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.option("--sandbox", is_flag=True, help="What the sandbox of a pod itself wrote, for looking into failures.")
@json_option
@ref("container")
def logs(
    *,
    sandbox: bool,
    follow: bool,
    tail: str,
    since: float | None,
    until: float | None,
    timestamps: bool,
    as_json: bool,
    ref: str,
) -> None:
    """Show the output of CONTAINER: its standard output and error on ours."""

    if sandbox:
        _show_sandbox(ref, as_json=as_json)
        return

    def show(line: LogLine) -> None:
        if as_json:
            text = line.data.decode(errors="replace")
            show_json({"at": line.at, "stream": line.stream, "data": text})
        else:
            stream = sys.stderr if line.stream == "stderr" else sys.stdout
            stream.buffer.write((iso(line.at).encode() + b" " if timestamps else b"") + line.data)
        if follow:
            (sys.stderr if line.stream == "stderr" and not as_json else sys.stdout).flush()

    request = Logs(ref=ref, follow=follow, tail=_tail(tail), since=since, until=until)
    connection.call("container.logs", request, on_item=show)
    sys.stderr.flush()


def _show_sandbox(ref: str, *, as_json: bool) -> None:
    def show(line: LogLine) -> None:
        if as_json:
            show_json({"at": line.at, "file": line.stream, "data": line.data.decode(errors="replace")})
        else:
            sys.stdout.buffer.write(f"{line.stream}: ".encode() + line.data)

    connection.call("pod.logs", Ref(ref=ref), on_item=show)

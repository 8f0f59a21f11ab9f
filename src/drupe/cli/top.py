"""`drupe top`: the processes of a container."""

from __future__ import annotations

import click

from drupe.cli import connection
from drupe.cli.options import json_option, ref
from drupe.cli.output import human_duration, human_size, show_list
from drupe.spec.control import Ref
from drupe.spec.status import ProcessInfo


@click.command("top")
@json_option
@ref("container")
def top(*, ref: str, as_json: bool) -> None:
    """List the processes of CONTAINER, ids as the host sees them."""
    processes: list[ProcessInfo] = connection.call("container.processes", Ref(ref=ref)).processes

    def row(p: ProcessInfo) -> tuple[object, ...]:
        return p.user or p.uid, p.pid, p.ppid, p.state, human_duration(p.cpu_s), human_size(p.rss_bytes), p.command

    headers = ("USER", "PID", "PPID", "STATE", "CPU TIME", "MEMORY", "COMMAND")
    show_list(processes, as_json=as_json, name=lambda p: str(p.pid), headers=headers, row=row)

"""`drupe stats`: what containers use, once or as a live table."""

from __future__ import annotations

import sys
import time

import click

from drupe.cli import connection
from drupe.cli.errors import say
from drupe.cli.options import format_option, json_option, option, refs
from drupe.cli.output import human_size, show_json, show_list
from drupe.cli.parse import duration
from drupe.spec.control import StatsItem, StatsRequest
from drupe.spec.status import Stats

_SAMPLE_GAP_S = 0.25  # two samples make a processor share; Docker waits a second or two for the same
_HEADERS = ("CONTAINER ID", "NAME", "CPU %", "MEMORY / LIMIT", "MEM %", "NET IN / OUT", "BLOCK READ / WRITE", "PIDS")


@click.command("stats")
@click.option("--no-stream", is_flag=True, help="Show it once.")
@option("--interval", parse=duration, default="1s", metavar="DURATION", help="Time between samples.")
@json_option
@format_option
@refs("container", required=False)
def stats(*, no_stream: bool, interval: float, as_json: bool, template: str | None, refs: tuple[str, ...]) -> None:
    """Show the resource use of CONTAINERs, or of all that run. --json: one object a line."""
    live = Table(as_json=as_json, clear=not no_stream and sys.stdout.isatty(), template=template)
    with connection.connect() as client:
        if no_stream:
            if not as_json:
                live.remember(client.call("container.stats", StatsRequest(refs=refs)).items)
                time.sleep(_SAMPLE_GAP_S)
            live.show(client.call("container.stats", StatsRequest(refs=refs)).items)
        else:
            request = StatsRequest(refs=refs, stream=True, interval_s=interval)
            client.call("container.stats", request, on_item=live.add)
            live.flush()


class Table:
    """Collects the items of one round and prints the round when the next one begins."""

    def __init__(self, *, as_json: bool, clear: bool, template: str | None = None) -> None:
        self._as_json = as_json
        self._template = template
        self._clear = clear
        self._round: dict[str, StatsItem] = {}
        self._before: dict[str, Stats] = {}
        self._left_out: set[str] = set()

    def add(self, item: StatsItem) -> None:
        """Take one streamed item."""
        if not self._has_figures(item):
            return
        if self._as_json:
            show_json(item)
            sys.stdout.flush()
            return
        if item.id in self._round:
            self.flush()
        self._round[item.id] = item

    def flush(self) -> None:
        """Print the round so far, if there is one."""
        if self._round:
            self.show(list(self._round.values()))
            self._round = {}

    def _has_figures(self, item: StatsItem) -> bool:
        """What has none is left out, and why is said once."""
        if item.error and item.id not in self._left_out:
            self._left_out.add(item.id)
            say(f"container {item.name} is left out: {item.error}")
        return not item.error

    def remember(self, items: list[StatsItem]) -> None:
        """Keep samples to compare the next ones with."""
        self._before = {item.id: item.stats for item in items if self._has_figures(item)}

    def show(self, items: list[StatsItem]) -> None:
        """Print one round."""
        items = [item for item in items if self._has_figures(item)]
        if self._as_json:
            for item in items:
                show_json(item)
            return
        sys.stdout.write("\x1b[H\x1b[J" if self._clear else "")
        show_list(
            items,
            as_json=False,
            name=lambda item: item.id,
            headers=_HEADERS,
            row=lambda item: _row(item, self._before.get(item.id)),
            template=self._template,
        )
        sys.stdout.flush()
        self.remember(items)


def cpu_percent(now: Stats, before: Stats | None) -> float:
    """Processor time between two samples, 100 for one processor's worth; 0 without an earlier sample."""
    if before is None or now.at <= before.at:
        return 0.0
    return max(0.0, (now.cpu_usage_ns - before.cpu_usage_ns) / ((now.at - before.at) * 1e9) * 100)


def counters(s: Stats) -> tuple[object, ...]:
    """Memory, its share, network, block I/O and tasks, as cells of a table."""
    limit = human_size(s.memory_limit_bytes) if s.memory_limit_bytes else "-"
    share = f"{s.memory_working_set_bytes / s.memory_limit_bytes:.1%}" if s.memory_limit_bytes else "-"
    return (
        f"{human_size(s.memory_working_set_bytes)} / {limit}",
        share,
        f"{human_size(s.net_rx_bytes)} / {human_size(s.net_tx_bytes)}",
        f"{human_size(s.io_read_bytes)} / {human_size(s.io_write_bytes)}",
        s.pids,
    )


def _row(item: StatsItem, before: Stats | None) -> tuple[object, ...]:
    return item.id[:12], item.name, f"{cpu_percent(item.stats, before):.2f}", *counters(item.stats)

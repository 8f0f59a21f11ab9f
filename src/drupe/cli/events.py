"""`drupe events`: what happens to pods, containers, images, networks and volumes."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from drupe.cli import connection, parse
from drupe.cli.options import format_option, json_option, many, option
from drupe.cli.output import clean, iso, show_json
from drupe.cli.ps import has_label
from drupe.errors import InvalidArgument
from drupe.spec.control import Events
from drupe.spec.status import Event

_TYPES = ("pod", "container", "image", "network", "volume", "daemon")
_KEYS = ("type", "event", "label", *_TYPES)


@click.command("events")
@option("--since", parse=parse.moment, metavar="TIME", help="Also what was since then (10m: so long ago).")
@option("--until", parse=parse.moment, metavar="TIME", help="End at that time.")
@many("-f", "--filter", "filters", metavar="KEY=VALUE", help="type=T, event=ACTION, label=K[=V], container=NAME…")
@click.option("--no-follow", is_flag=True, help="Show what was and end.")
@json_option
@format_option
def events(
    *,
    since: float | None,
    until: float | None,
    filters: tuple[str, ...],
    no_follow: bool,
    as_json: bool,
    template: str | None,
) -> None:
    """Show events as they happen. --json: one object a line."""
    wanted = _read(filters)
    write = _writer(template) if template is not None else show_json if as_json else _write_line

    def show(event: Event) -> None:
        if matches(event, wanted):
            write(event)
            sys.stdout.flush()

    # `ids` stays with us: an event's object may be named by name, which the journal's events carry as an attribute.
    request = Events(since=since, until=until, follow=not no_follow, types=tuple(wanted.get("type", ())))
    answer = connection.call("system.events", request, on_item=show)
    for event in answer.events if answer else ():
        show(event)


def _writer(template: str) -> Callable[[Event], None]:
    from drupe.cli import formats

    filled = formats.read(template)
    return lambda event: click.echo(filled.fill(formats.inspected(event)))


def _write_line(event: Event) -> None:
    sys.stdout.write(line(event) + "\n")


def _read(filters: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if key not in _KEYS or not equals:
            raise InvalidArgument(f"bad filter {text!r}", hint=f"KEY=VALUE with one of: {', '.join(_KEYS)}")
        found.setdefault(key, []).append(value)
    return found


def matches(event: Event, wanted: dict[str, list[str]]) -> bool:
    """Whether an event passes the filters: values of one key are alternatives, keys must all match."""
    names = (event.attributes.get("name", ""), *((event.id,) if event.id else ()))
    for key, values in wanted.items():
        if key == "type":
            good = event.type in values
        elif key == "event":
            good = event.action.partition(":")[0] in values
        elif key == "label":
            good = any(has_label(event.attributes, value) for value in values)
        else:
            of_it = event.type == key and any(v == n or event.id.startswith(v) for v in values for n in names)
            good = of_it or any(event.attributes.get(key) == value for value in values)
        if not good:
            return False
    return True


def line(event: Event) -> str:
    """One event as Docker prints it: time, type, action, id, attributes."""
    attributes = ", ".join(f"{key}={value}" for key, value in sorted(event.attributes.items()))
    text = f"{iso(event.at)} {event.type} {event.action} {event.id}" + (f" ({attributes})" if attributes else "")
    return clean(text)

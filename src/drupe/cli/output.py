"""What the verbs print: aligned tables, JSON, sizes, durations and times as people read them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

_encoder = msgspec.json.Encoder()


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Left-aligned columns, two spaces apart, no trailing blanks. Control characters in cells are escaped."""
    cells = [list(headers)] + [[clean(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def clean(text: str) -> str:
    """`text` without control characters: names and labels come from outside and must not steer the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def show_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    sys.stdout.write(table(headers, rows) + "\n")


def show_json(value: Any) -> None:
    """One JSON document on one line."""
    sys.stdout.write(_encoder.encode(value).decode() + "\n")


def show_list(
    records: Sequence[Any],
    *,
    as_json: bool,
    quiet: bool = False,
    name: Callable[[Any], str],
    headers: Sequence[str],
    row: Callable[[Any], Sequence[object]],
    template: str | None = None,
) -> None:
    """The forms of every listing: a template, JSON, ids or names only, table."""
    if template is not None:
        from drupe.cli import formats

        formats.show(formats.read(template), records, headers=headers, row=row)
    elif as_json:
        show_json(list(records))
    elif quiet:
        sys.stdout.writelines(f"{name(record)}\n" for record in records)
    else:
        show_table(headers, [row(record) for record in records])


def human_size(size_bytes: float) -> str:
    """1536 → "1.5 KiB"; powers of 1024, three significant digits."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


def human_duration(seconds: float) -> str:
    """The largest unit that fits, as Docker says it: "3 minutes", "2 hours", "5 days"."""
    whole = max(0, int(seconds))
    for unit, length in (("week", 604800), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if whole >= 2 * length:
            return f"{whole // length} {unit}s"
    return "less than a second" if seconds < 1 else f"{whole} second{'s' if whole != 1 else ''}"


def ago(at: float) -> str:
    """How long ago Unix time `at` was; "" for never."""
    return f"{human_duration(time.time() - at)} ago" if at else ""


def iso(at: float) -> str:
    """UTC time with nanoseconds as RFC 3339, the form of Docker's logs and events."""
    seconds, nanoseconds = divmod(round(at * 1e9), 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d}Z"


def short_id(identifier: str) -> str:
    """The first 12 characters of an id or digest, without its algorithm."""
    return identifier.removeprefix("sha256:")[:12]


def shorten(text: str, width: int) -> str:
    """At most `width` characters, the cut marked."""
    return text if len(text) <= width else text[: width - 1] + "…"

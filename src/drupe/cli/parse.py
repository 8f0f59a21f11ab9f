"""The small languages of the flags: sizes, durations, times, mounts, ports… Pure functions, text in, spec words out.

Each raises InvalidArgument with the offending text; the spelling follows Docker's command line.
"""

from __future__ import annotations

import os
import re
import time

from drupe.errors import InvalidArgument
from drupe.spec.units import parse_size

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|s|m|h|d)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def size_or_unlimited(text: str) -> int:
    """A size in bytes; "-1" and "unlimited" mean no limit (-1)."""
    return -1 if text in ("-1", "unlimited") else parse_size(text)


def duration(text: str) -> float:
    """Seconds of "10", "1.5", "250ms", "1h30m"."""
    bare = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", bare):
        return float(bare)
    parts = _DURATION_PART.findall(bare)
    if not parts or "".join(number + unit for number, unit in parts) != bare:
        raise InvalidArgument(f"bad duration {text!r}", hint="write it like 10s, 250ms or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def time_limit(text: str) -> float:
    """As `duration`, and more than nothing."""
    seconds = duration(text)
    if seconds <= 0:
        raise InvalidArgument(f"bad time limit {text!r}", hint="write more than 0, like 2s; leave it out for none")
    return seconds


def moment(text: str) -> float:
    """Unix seconds of a Unix time, an ISO 8601 time, or a duration ago ("10m")."""
    if re.fullmatch(r"\d{9,}(\.\d+)?", text):
        return float(text)
    try:
        return time.time() - duration(text)
    except InvalidArgument:
        pass
    from datetime import datetime

    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidArgument(
            f"bad time {text!r}", hint="write a Unix time, 2026-01-31T12:00:00Z, or how long ago: 10m"
        ) from None


def pair(text: str, *, what: str = "KEY=VALUE") -> tuple[str, str]:
    """Key and value of "k=v"; both sides of the first '='."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidArgument(f"bad {what} {text!r}", hint="write it as KEY=VALUE")
    return key, value


def label(text: str) -> tuple[str, str]:
    """As `pair`, but a bare key is a label with an empty value."""
    key, _, value = text.partition("=")
    if not key:
        raise InvalidArgument(f"bad label {text!r}", hint="write it as KEY=VALUE")
    return key, value


def fields(text: str, *, what: str) -> dict[str, str]:
    """The keys of a comma-separated option ("type=bind,src=/a,ro"); a bare key has the value ""."""
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key in found:
            raise InvalidArgument(f"{what} {text!r} says {key!r} twice")
        found[key] = value
    return found


def take(found: dict[str, str], *names: str) -> str | None:
    """Remove and return the value of the first of `names` that `found` has."""
    for name in names:
        if name in found:
            return found.pop(name)
    return None


def refuse_rest(found: dict[str, str], *, what: str, text: str, known: str) -> None:
    """Raise for the keys that nobody took."""
    if found:
        raise InvalidArgument(f"{what} {text!r} has an unknown key {next(iter(found))!r}", hint=f"known keys: {known}")


def flag(value: str | None, *, what: str) -> bool:
    """A switch in a comma-separated option: absent is off, bare or "true" or "1" is on."""
    if value is None or value.lower() in ("false", "0"):
        return False
    if value.lower() in ("", "true", "1"):
        return True
    raise InvalidArgument(f"bad value {value!r} of {what}", hint="write true or false")


def integer(text: str, *, what: str) -> int:
    """A whole number, decimal."""
    try:
        return int(text)
    except ValueError:
        raise InvalidArgument(f"bad {what} {text!r}", hint="write a whole number") from None


def env(text: str) -> str:
    """One -e value: "K=V" as it is; "K" takes the caller's value, and removes K when the caller has none."""
    if not text or text.startswith("="):
        raise InvalidArgument(f"bad environment variable {text!r}", hint="write it as KEY=VALUE")
    if "=" in text or text not in os.environ:
        return text
    return f"{text}={os.environ[text]}"


def env_file(path: str) -> list[str]:
    """The variables of an --env-file: one K=V or K a line; blank lines and lines that start with # are skipped."""
    from pathlib import Path

    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read env file {path}", cause=str(getattr(error, "strerror", error))) from None
    return [env(line.lstrip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def command(text: str) -> tuple[str, ...]:
    """An argv written as a JSON list or as shell words."""
    if text.lstrip().startswith("["):
        import json

        try:
            words = json.loads(text)
        except ValueError as error:
            raise InvalidArgument(f"bad command {text!r}", cause=str(error)) from None
        if not all(isinstance(word, str) for word in words):
            raise InvalidArgument(f"bad command {text!r}: a JSON list of strings is wanted")
        return tuple(words)
    import shlex

    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidArgument(f"bad command {text!r}", cause=str(error)) from None

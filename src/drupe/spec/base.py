"""What every spec shares: frozen, typed, strict about unknown keys, JSON-able through msgspec."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from drupe.errors import InvalidArgument

T = TypeVar("T")
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,127}")


if TYPE_CHECKING:  # type checkers want `frozen` repeated in every subclass; at run time it is inherited

    class Spec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
        """Base of all value objects: immutable, compared by value, unknown keys refused."""

else:

    class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
        """Base of all value objects: immutable, compared by value, unknown keys refused."""


class Record(msgspec.Struct, kw_only=True, omit_defaults=False):
    """Base of what drupe answers (status, stats, events). Unknown keys are ignored: a newer daemon may say more."""


def decode(kind: type[T], data: Any, *, where: str) -> T:
    """Convert plain data (from JSON, msgpack, TOML) to `kind`; a wrong key or type is one clear line.

    Raises InvalidArgument naming `where` and the path of the offending key.
    """
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{where}: {error}") from None


def plain(value: Any) -> Any:
    """The plain (dict, list, str, int…) form of a spec or record."""
    return msgspec.to_builtins(value)


def to_json(value: Any) -> str:
    """One compact JSON line of a spec or record."""
    return json.dumps(plain(value), separators=(",", ":"))


def check_name(name: str, what: str) -> str:
    """Raise InvalidArgument unless `name` is a legal object name (Docker's rule, 128 characters at most)."""
    if not NAME.fullmatch(name):
        raise InvalidArgument(
            f"bad {what} name {name!r}",
            hint="use letters, digits, '_', '.', '-', starting with a letter or digit, at most 128 characters",
        )
    return name


def check_id(id_: str, what: str) -> str:
    """Raise InvalidArgument unless `id_` is a legal id: a name without ".", which joins an id to what is its own: the
    keeper's task "ID.EXEC", a pod's own process "ID.pause"."""
    if not ID.fullmatch(id_):
        raise InvalidArgument(
            f"bad {what} id {id_!r}",
            hint="use letters, digits, '_' and '-', starting with a letter or digit, at most 128 characters",
        )
    return id_

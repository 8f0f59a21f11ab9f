"""What stands in the actions of a `--format`: .Fields, "texts", numbers, $names, functions, pipes and parentheses.

Fields are found whatever their case and underscores: `.CreatedAt` is `created_at`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from drupe.cli.output import clean
from drupe.errors import InvalidArgument

Names = dict[str, Any]
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[|()]|[^\s|()"]+)')


def evaluate(text: str, value: Any, names: Names) -> Any:
    """The value of an action, `value` being the dot. Raises InvalidArgument."""
    tokens = _TOKEN.findall(text)
    result = _Expression(tokens, value, names).pipe()
    if tokens:
        raise InvalidArgument(f"bad format: {tokens[0]!r} is not expected in {text!r}")
    return result


class _Expression:
    """Takes the tokens from the front, as far as they belong together."""

    def __init__(self, tokens: list[str], value: Any, names: Names) -> None:
        self._tokens = tokens
        self._value = value
        self._names = names

    def pipe(self) -> Any:
        """Commands with | between them: what one gives is the last argument of the next."""
        result = self._command([])
        while self._tokens[:1] == ["|"]:
            del self._tokens[0]
            result = self._command([result])
        return result

    def _command(self, given: list[Any]) -> Any:
        word = self._tokens[0] if self._tokens else ""
        function = _FUNCTIONS.get(word)
        if function is None:
            return self._operand()
        del self._tokens[0]
        arguments = []
        while self._tokens and self._tokens[0] not in "|)":
            arguments.append(self._operand())
        try:
            return function(*arguments, *given)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidArgument(f"bad format: {word} does not take that", cause=str(error)) from None

    def _operand(self) -> Any:
        word = self._tokens.pop(0) if self._tokens else ""
        if word == "(":
            return self._parenthesis()
        if word.startswith('"'):
            return json.loads(word)
        if re.fullmatch(r"-?\d+", word):
            return int(word)
        name, dot, path = word.partition(".")
        if name in self._names or (dot and not name):
            return _walk(self._names[name] if name else self._value, path)
        raise InvalidArgument(
            f"bad format: {word!r} is neither a field nor a function",
            hint=f"fields begin with a dot; functions: {', '.join(_FUNCTIONS)}",
        )

    def _parenthesis(self) -> Any:
        result = self.pipe()
        if self._tokens[:1] != [")"]:
            raise InvalidArgument("bad format: a parenthesis is not closed")
        del self._tokens[0]
        if self._tokens and self._tokens[0].startswith("."):
            return _walk(result, self._tokens.pop(0))
        return result


def _walk(value: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        value = field(value, name)
    return value


def field(value: Any, name: str) -> Any:
    """A mapping's field; None of None. Raises InvalidArgument with the names that there are."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"bad format: there is no {name!r} in {shown(value)!r}")
    if name in value:
        return value[name]
    for key in value:
        if _plain(str(key)) == _plain(name):
            return value[key]
    raise InvalidArgument(f"bad format: there is no {name!r}", hint=f"there are {', '.join(map(str, value))}")


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def shown(value: Any) -> str:
    """A value as Docker prints it: labels as k=v,k=v, lists in brackets, and nothing that steers a terminal."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{clean(str(key))}={shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return f"[{' '.join(map(shown, value))}]"
    return "".join(part if part == "\n" else clean(part) for part in re.split("(\n)", str(value)))


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else value and value[key]
    return value


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False),
    "len": len,
    "index": _index,
    "upper": str.upper,
    "lower": str.lower,
    "join": lambda items, between: between.join(map(str, items)),
    "println": lambda *values: " ".join(map(shown, values)) + "\n",
    "eq": lambda one, *others: one in others,
    "ne": lambda one, other: one != other,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
}

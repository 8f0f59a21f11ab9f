"""`--format`: the part of Go's templates that people write for Docker.

Text with {{actions}}: values and pipes (`cli.expression`), {{if}} {{range}} {{with}} {{else}} {{end}}, also
{{range $key, $value := .X}}. A leading `table` lines up columns that tabs part. Anything else is refused with
InvalidArgument.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from drupe.cli.expression import Names, evaluate, shown
from drupe.errors import InvalidArgument

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_LOOP = re.compile(r"(?:(\$\w+)\s*,\s*)?(\$\w+)\s*:=\s*(.*)", re.DOTALL)
_BLOCKS = ("if", "range", "with")


class Node(NamedTuple):
    """A piece of a template: "text", "action" (its value is shown), or a block with what stands in it."""

    kind: str
    text: str
    body: tuple[Node, ...] = ()
    otherwise: tuple[Node, ...] = ()


class Template:
    """A template that is read once and filled in for each value. Raises InvalidArgument for what it cannot read."""

    def __init__(self, text: str) -> None:
        text = text.replace("\\t", "\t").replace("\\n", "\n")
        self.is_table = text.startswith("table ")
        self._nodes = _Reader(text.removeprefix("table ")).nodes()

    def fill(self, value: Any) -> str:
        """The text for one value: plain mappings, lists, numbers and texts."""
        return "".join(_fill(self._nodes, value, {"$": value}))

    def heads(self) -> list[str]:
        """The names of a table's columns, from its placeholders: .CreatedAt is CREATED AT."""
        return "".join(_head(node) for node in self._nodes).split("\t")


def _head(node: Node) -> str:
    if node.kind == "text":
        return node.text
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", node.text.rpartition(".")[2]).upper()


class _Reader:
    """Splits a text at its actions and nests its blocks."""

    def __init__(self, text: str) -> None:
        self._source = text
        self._pieces = self._split(text)
        self._stop = ""

    def _split(self, text: str) -> Iterator[Node]:
        at = 0
        for match in _ACTION.finditer(text):
            yield Node("text", text[at : match.start()])
            yield Node("action", match[1])
            at = match.end()
        if "{{" in text[at:]:
            raise self._bad("an action is not closed")
        yield Node("text", text[at:])

    def nodes(self) -> tuple[Node, ...]:
        """All of it, every block closed."""
        found = self._until_stop()
        if self._stop:
            raise self._bad(f"{{{{{self._stop}}}}} without a beginning")
        return found

    def _until_stop(self) -> tuple[Node, ...]:
        found = []
        self._stop = ""
        for piece in self._pieces:
            head, _, rest = piece.text.partition(" ") if piece.kind == "action" else ("", "", "")
            if head in ("end", "else"):
                self._stop = head
                break
            found.append(self._block(head, rest) if head in _BLOCKS else piece)
        return tuple(found)

    def _block(self, kind: str, condition: str) -> Node:
        body = self._until_stop()
        otherwise = self._until_stop() if self._stop == "else" else ()
        if self._stop != "end":
            raise self._bad("an {{end}} is missing")
        self._stop = ""
        return Node(kind, condition, body, otherwise)

    def _bad(self, why: str) -> InvalidArgument:
        return InvalidArgument(f"bad format {self._source!r}: {why}", hint="write it like '{{.ID}} {{json .Labels}}'")


def _fill(nodes: Sequence[Node], value: Any, names: Names) -> Iterator[str]:
    for node in nodes:
        if node.kind == "text":
            yield node.text
        elif node.kind == "action":
            yield shown(evaluate(node.text, value, names))
        elif node.kind == "range":
            yield from _loop(node, value, names)
        else:
            condition = evaluate(node.text, value, names)
            inner = condition if node.kind == "with" and condition else value
            yield from _fill(node.body if condition else node.otherwise, inner, names)


def _loop(node: Node, value: Any, names: Names) -> Iterator[str]:
    key_name, item_name, over = match.groups() if (match := _LOOP.fullmatch(node.text)) else ("", "", node.text)
    items = evaluate(over, value, names) or ()
    if not items:
        yield from _fill(node.otherwise, value, names)
    for key, item in items.items() if isinstance(items, Mapping) else enumerate(items):
        inner = names | {name: thing for name, thing in ((key_name, key), (item_name, item)) if name}
        yield from _fill(node.body, item, inner)

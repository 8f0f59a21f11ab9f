"""Options that many verbs share, and the bridge from the parsers to click's types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from drupe.errors import InvalidArgument

F = TypeVar("F", bound=Callable[..., Any])


class Parsed(click.ParamType):  # type: ignore[type-arg]
    """A click type around a parser: its InvalidArgument becomes a usage error that names the flag."""

    def __init__(self, parser: Callable[[str], Any], name: str) -> None:
        self.parser = parser
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parser(value)
        except InvalidArgument as error:
            text = f"{error} ({error.hint})" if error.hint else str(error)
            self.fail(text, param, ctx)


def option(
    *names: str, parse: Callable[[str], Any] | None = None, metavar: str | None = None, **rest: Any
) -> Callable[[F], F]:
    """`click.option` with a parser of ours as its type."""
    if parse is not None:
        rest["type"] = Parsed(parse, (metavar or parse.__name__).lower())
    return click.option(*names, metavar=metavar, **rest)


def many(*names: str, **rest: Any) -> Callable[[F], F]:
    """An option that may be given several times."""
    return option(*names, multiple=True, **rest)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only ids or names.")


format_option = click.option("--format", "template", metavar="TEMPLATE|json", help="As '{{.ID}} {{.Status}}' says.")


def refs(kind: str, *, required: bool = True, name: str = "refs") -> Callable[[F], F]:
    """One or more names or ids as arguments, completed by the shell."""
    from drupe.cli.completion import completer

    return click.argument(
        name, nargs=-1, required=required, metavar=f"{kind.upper()}...", shell_complete=completer(kind)
    )


def ref(kind: str, *, name: str = "ref") -> Callable[[F], F]:
    """One name or id as an argument, completed by the shell."""
    from drupe.cli.completion import completer

    return click.argument(name, metavar=kind.upper(), shell_complete=completer(kind))


def apply(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several decorators as one, in the order in which they are written."""

    def together(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return together

"""Checked access to the table of the control API: parameters, results and items by method name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from drupe.errors import InternalError, InvalidArgument, Unsupported
from drupe.spec.base import decode
from drupe.spec.control import METHODS, Empty, Method


def lookup(name: str) -> Method:
    """The method called `name`. Raises Unsupported: a newer client may know more than this daemon."""
    method = METHODS.get(name)
    if method is None:
        raise Unsupported(f"unknown method {name!r}", hint="client and daemon may be of different versions")
    return method


def check_params(method: Method, params: Any) -> Any:
    """`params` as the method's own struct; None stands for no parameters. Raises InvalidArgument."""
    if isinstance(params, method.params):
        return params
    return decode(method.params, {} if params is None else params, where=method.name)


def check_fds(method: Method, names: Iterable[str]) -> None:
    """Raise InvalidArgument when a descriptor's name is unknown to the method or given twice."""
    seen: set[str] = set()
    for name in names:
        known = name in method.fds or any(one.endswith("*") and name.startswith(one[:-1]) for one in method.fds)
        if not known or name in seen:
            allowed = ", ".join(method.fds) or "no descriptors"
            raise InvalidArgument(f"{method.name}: unexpected descriptor {name!r}; it takes {allowed}")
        seen.add(name)


def check_result(method: Method, result: Any) -> Any:
    """What a handler returned, when it is of the promised type; None stands for Empty. Raises InternalError."""
    if method.result is Any or isinstance(result, method.result):
        return result
    if result is None and method.result is Empty:
        return Empty()
    raise InternalError(f"{method.name} answered {type(result).__name__}, not {method.result.__name__}")


def decode_result(method: Method, data: Any) -> Any:
    """Plain data from the wire as the method's result type. Raises InvalidArgument."""
    return data if method.result is Any else decode(method.result, data, where=f"result of {method.name}")


def decode_item(method: Method, data: Any) -> Any:
    """Plain data from the wire as the method's item type. Raises InvalidArgument."""
    return data if method.item is None else decode(method.item, data, where=f"item of {method.name}")

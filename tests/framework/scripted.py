"""A stand-in for the control client: answers from a script, records what it was asked, checks the types of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from drupe.rpc.methods import check_fds, check_params, lookup
from drupe.spec.status import ContainerStatus, PodStatus

Answer = Any  # a result, an exception to raise, or a function of the params that returns either


class Scripted:
    """`answers` maps a method to its answer; `items` to the items it streams first. `calls` is what was asked."""

    def __init__(self, answers: Mapping[str, Answer], items: Mapping[str, list[Any]] | None = None) -> None:
        self.answers = dict(answers)
        self.items = dict(items or {})
        self.calls: list[tuple[str, Any]] = []
        self.fds: dict[str, dict[str, int]] = {}

    def call(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
        on_item: Callable[[Any], None] | None = None,
    ) -> Any:
        entry = lookup(method)
        check_fds(entry, fds or {})
        check_params(entry, params)
        self.calls.append((method, params))
        self.fds[method] = dict(fds or {})
        for item in self.items.get(method, ()):
            assert isinstance(item, entry.item)
            if on_item is not None:
                on_item(item)
        assert method in self.answers, f"unexpected call of {method}"
        answer = self.answers[method]
        answer = answer(params) if callable(answer) else answer
        if isinstance(answer, BaseException):
            raise answer
        assert entry.result is Any or isinstance(answer, entry.result), f"{method} answers {type(answer)}"
        return answer

    def close(self) -> None:
        pass

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def params(self, method: str) -> Any:
        """What the only call of `method` asked."""
        found = [params for called, params in self.calls if called == method]
        assert len(found) == 1, f"{method} was called {len(found)} times: {self.calls}"
        return found[0]


def container(**fields: Any) -> ContainerStatus:
    """A running container called web in pod p0."""
    defaults: dict[str, Any] = {
        "id": "c0" * 16, "name": "web", "pod": "p0" * 16, "state": "running", "image": "busybox:latest",
        "argv": ["sleep", "60"], "created_at": 1.0, "started_at": 1.0,
    }  # fmt: skip
    return ContainerStatus(**(defaults | fields))


def pod(*containers: ContainerStatus, **fields: Any) -> PodStatus:
    """A running pod called web with `containers`."""
    defaults: dict[str, Any] = {
        "id": "p0" * 16, "name": "web", "namespace": "default", "state": "running", "sandbox": "runc",
        "containers": list(containers), "created_at": 1.0,
    }  # fmt: skip
    return PodStatus(**(defaults | fields))

"""The node's policy: the least isolation and the forbidden features of each pod. Pure functions over the rules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from drupe.errors import PermissionDenied
from drupe.sandboxers.kinds import LEVELS
from drupe.spec.node import PolicyRule

# what lets a pod reach past its boundary, whatever the kind: a pod that uses one of these counts as "none"
OPENS = frozenset({"privileged", "host-network", "host-pid", "host-ipc", "host-uts"})


def rules_for(rules: Iterable[PolicyRule], *, namespace: str, labels: Mapping[str, str]) -> tuple[PolicyRule, ...]:
    """The rules that hold for a pod."""
    return tuple(
        rule for rule in rules if fnmatchcase(namespace, rule.namespace) and rule.labels.items() <= dict(labels).items()
    )


def level_of(kind_level: str, features: Collection[str]) -> str:
    """The isolation that a pod with these features gets of a kind with that level."""
    return "none" if OPENS & set(features) else kind_level


def is_weaker(level: str, than: str) -> bool:
    """Whether `level` is below `than`."""
    return LEVELS.index(level) < LEVELS.index(than)


def objection(rules: Iterable[PolicyRule], level: str, features: Collection[str]) -> tuple[PolicyRule, str] | None:
    """The first rule that forbids a pod of this level with these features, and what it says; None when all allow it."""
    for rule in rules:
        denied = sorted(set(rule.deny) & set(features))
        if denied:
            return rule, f"policy rule {rule.name!r} forbids {denied[0]!r}"
        if is_weaker(level, rule.minimum):
            opened = sorted(OPENS & set(features))
            has = f"a pod with {opened[0]!r} has none" if opened else f"this would be {level!r}"
            return rule, f"policy rule {rule.name!r} asks for isolation {rule.minimum!r} or stronger, and {has}"
    return None


def refuse_forbidden(what: str, rules: Iterable[PolicyRule], level: str, features: Collection[str]) -> None:
    """Raise PermissionDenied naming the rule that forbids it, if one does."""
    found = objection(rules, level, features)
    if found is not None:
        rule, says = found
        raise PermissionDenied(f"{what} is refused: {says}", hint=_hint(rule), rule=rule.name)


def _hint(rule: PolicyRule) -> str:
    return f"the rule is in the node's configuration, for namespace {rule.namespace!r}" + (
        f" and labels {', '.join(f'{k}={v}' for k, v in sorted(rule.labels.items()))}" if rule.labels else ""
    )

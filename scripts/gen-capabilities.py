#!/usr/bin/env python3
"""Write docs/capabilities.md from the tables of the kinds, so that the page and the code cannot disagree.

scripts/gen-capabilities.py           write the page
scripts/gen-capabilities.py --check   exit 1 when the page is not what would be written
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from drupe.sandboxers.features import FEATURES
from drupe.sandboxers.fields import RULES, UNSEEN, WHOLE, Everywhere
from drupe.sandboxers.kinds import KINDS, Kind

PAGE = Path(__file__).parents[1] / "docs/capabilities.md"

HEAD = """# What each kind of sandbox can do

Written by `scripts/gen-capabilities.py` from the tables of the kinds in `src/drupe/sandboxers`; change those, not this.

What is asked of a pod, of an exec or of an update is checked against this table before anything is made. What a kind
cannot do is refused with `Unsupported`, naming kind and feature; nothing is silently ignored or weakened. The contract
tests read the same table: what is declared must work, what is not must be refused. `drupe system capabilities` prints
it, with what can run on the host at hand; [choosing](choosing.md) says how a pod gets its kind.

## Kinds, strongest first

| kind | isolation | what stands between workload and host | |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    every = list(KINDS.values())
    built = [kind for kind in every if not kind.is_planned]
    kinds = [f"| `{k.name}` | `{k.level}` | {k.isolates} | {'planned' if k.is_planned else ''} |" for k in every]
    parts = [HEAD + "\n".join(kinds), "## Features\n\n" + features(built)]
    parts += [f"## What `{kind.name}` cannot do, or not wholly\n\n" + reasons(kind) for kind in built]
    return "\n\n".join([*parts, SETTINGS + settings(built), FIELDS + fields()]) + "\n"


def features(built: list[Kind]) -> str:
    """Kinds across, features down."""
    lines = ["| feature | what it is | " + " | ".join(f"`{kind.name}`" for kind in built) + " |"]
    lines.append("|---|---|" + "---|" * len(built))
    for feature, meaning in FEATURES.items():
        words = (kind.able()[feature].partition(":")[0] for kind in built)
        lines.append(f"| `{feature}` | {meaning} | {' | '.join(words)} |")
    return "\n".join(lines)


def reasons(kind: Kind) -> str:
    """Each reason once, with the features that it holds for."""
    found: dict[str, list[str]] = {}
    for feature in FEATURES:
        if kind.able()[feature] != "yes":
            found.setdefault(kind.able()[feature], []).append(f"`{feature}`")
    lines = (f"- {', '.join(names)}: {said}" for said, names in found.items())
    return "\n".join(lines)


SETTINGS = """## Settings

Keys of `[kinds.NAME]` in the [node's configuration](choosing.md#the-nodes-configuration), with their defaults.

"""


def settings(built: list[Kind]) -> str:
    """What each kind lets a node's operator set."""
    return "\n".join(line for kind in built for line in _settings(kind))


def _settings(kind: Kind) -> Iterator[str]:
    options = kind.options()
    fields = msgspec.structs.fields(options)
    if fields:
        says = " ".join((options.__doc__ or "").split())
        defaults = msgspec.structs.asdict(options())
        yield f"- `{kind.name}`: {', '.join(f'`{f.name} = {_toml(defaults[f.name])}`' for f in fields)}. {says}"


def _toml(value: object) -> str:
    return "(none)" if value is None else json.dumps(msgspec.to_builtins(value))


FIELDS = """## Which field asks for what

A field that is left at its default asks for nothing. A container's image asks for `linux-programs` or `wasm-modules`,
by its platform.

| field | feature |
|---|---|
"""


def fields() -> str:
    """Each field of the specs with the feature that it asks for, or why it asks for none."""
    return "\n".join(f"| `{field}` | {asks} |" for field, asks in _fields())


def _fields() -> Iterator[tuple[str, str]]:
    for struct, rules in RULES.items():
        for name, rule in rules.items():
            field = f"{struct.__name__}.{name}"
            if isinstance(rule, str):
                yield field, f"`{rule}`"
            elif isinstance(rule, Everywhere):
                yield field, f"all kinds: {rule.why}"
            elif callable(rule):
                yield field, "by its value"
    for struct, feature in WHOLE.items():
        yield struct.__name__, f"`{feature}`, as a whole"
    for struct, why in UNSEEN.items():
        yield struct.__name__, f"all kinds: {why}"


def main() -> int:
    """Write or check; the exit code."""
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page())
        return 0
    if PAGE.exists() and PAGE.read_text() == page():
        return 0
    print("docs/capabilities.md is not current: run scripts/gen-capabilities.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())

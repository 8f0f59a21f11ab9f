"""`drupe system capabilities` and `drupe system choose`: what the kinds of sandbox can do, and which one a pod gets."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import click

from drupe.cli import connection, podspec
from drupe.cli.options import json_option
from drupe.cli.output import show_json, show_table
from drupe.cli.run import create_options, pod_of
from drupe.errors import InvalidArgument
from drupe.spec.control import Empty, PodCreate
from drupe.spec.host import CapabilityTable
from drupe.spec.status import Choice

_WIDTH = 100
_SAID_BY = {
    "request": "as asked",
    "annotation": "as the pod's annotation drupe.kind asks",
    "image": "as the image's label drupe.kind asks",
    "node": "the default of this node's configuration",
    "built-in": "the built-in default",
}


@click.command("capabilities")
@json_option
def capabilities(*, as_json: bool) -> None:
    """Show what each kind of sandbox can do, whether it can run here or not."""
    answer: CapabilityTable = connection.call("system.capabilities", Empty())
    if as_json:
        show_json(answer)
        return
    kinds = list(answer.kinds)
    rows = [
        (feature, *(answer.kinds[kind].get(feature, "no").partition(":")[0] for kind in kinds), meaning)
        for feature, meaning in answer.features.items()
    ]
    show_table(("FEATURE", *kinds, "WHAT IT IS"), rows)
    click.echo()
    about = [(kind.name, kind.level, kind.state, kind.cause or kind.isolates) for kind in answer.about]
    show_table(("KIND", "LEVEL", "HERE", "WHY, OR WHAT IT ISOLATES"), about)
    for kind in kinds:
        click.echo("".join(f"\n{line}" for line in _reasons(kind, answer.kinds[kind])), nl=False)
    click.echo()


def _reasons(kind: str, able: dict[str, str]) -> Iterator[str]:
    """One entry for each reason, with all features that have it."""
    reasons: dict[str, list[str]] = {}
    for feature, said in able.items():
        if said != "yes":
            reasons.setdefault(said, []).append(feature)
    for said, features in reasons.items():
        word, _, reason = said.partition(": ")
        text = f"{kind}: {', '.join(features)}: {word}: {reason}"
        yield textwrap.fill(text, _WIDTH, subsequent_indent="    ", break_on_hyphens=False)


@click.command("choose", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@create_options
@json_option
@click.pass_context
def choose(ctx: click.Context, /, *, image: str, command: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Say which kind of sandbox `drupe run` would use for IMAGE with the same flags, and why. Nothing is made."""
    if flags["pod"]:
        raise InvalidArgument("a container that joins a pod gets the pod's kind", hint=f"drupe inspect {flags['pod']}")
    spec = pod_of(podspec.container(flags, image, command), flags)
    choice: Choice = connection.call("system.choose", PodCreate(spec=spec))
    if as_json:
        show_json(choice)
        return
    for line in explained(choice):
        click.echo(line)


def explained(choice: Choice) -> Iterator[str]:
    """A choice in lines for people."""
    asked = f"{choice.asked}, " if choice.asked != choice.kind else ""
    yield f"sandbox: {choice.kind} (isolation {choice.level}; {asked}{_SAID_BY.get(choice.by, choice.by)})"
    for one in choice.passed_over:
        yield f"passed over: {one.kind}: {one.reason}"
    for note in choice.notes:
        yield f"note: {note}"
    if choice.rules:
        yield f"policy: {', '.join(choice.rules)}"

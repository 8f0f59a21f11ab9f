"""Which kind of sandbox a pod gets, and why. Nothing here touches the host: what it is like comes in as arguments.

Who is asked, in this order: the request (`--sandbox`), the pod's annotation, its images' label, the node's
configuration, the built-in default. A kind that is named is taken or refused, never replaced. "auto" takes the
strongest that can do what the spec asks for, that the policy allows, and whose probe passed on this host.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from drupe.errors import DrupeError, InvalidArgument, PermissionDenied, Unsupported
from drupe.runtime.policy import is_weaker, level_of, objection, refuse_forbidden, rules_for
from drupe.sandboxers.capabilities import for_platform, lacking, needed, refuse_unless_able
from drupe.sandboxers.features import FEATURES
from drupe.sandboxers.kinds import Kind, kind_of
from drupe.spec.node import NodeConfig, PolicyRule
from drupe.spec.pod import PodSpec
from drupe.spec.status import Choice, PassedOver

WISH = "drupe.kind"  # the annotation of a pod and the label of an image that name a kind
BUILT_IN = "runc"
AUTO = "auto"

_WHO = {
    "request": "",
    "annotation": f"the pod's annotation {WISH}",
    "image": f"an image's label {WISH}",
    "node": "the node's configuration",
    "built-in": "an image of WebAssembly",
}

Probe = Callable[[str], Awaitable[str]]


class ImageWish(NamedTuple):
    """What an image says. os: of its platform. kind: its label's, or ""."""

    ref: str
    os: str
    kind: str = ""


class Wish(NamedTuple):
    """A kind or "auto", and who asked for it."""

    kind: str
    by: str


@dataclass(frozen=True, slots=True)
class Question:
    """All that decides. features: what the pod asks for, its images' platforms included. default: the node's kind.
    rules: those that hold for the pod. kinds: strongest first. probe: why a kind cannot run here, "" when it can."""

    spec: PodSpec
    images: tuple[ImageWish, ...]
    features: frozenset[str]
    default: str
    rules: tuple[PolicyRule, ...]
    kinds: Mapping[str, Kind]
    probe: Probe
    notes: list[str] = field(default_factory=list)


def ask(
    spec: PodSpec,
    images: tuple[ImageWish, ...],
    *,
    config: NodeConfig,
    kinds: Mapping[str, Kind],
    probe: Probe,
    joined: Collection[str] = (),
) -> Question:
    """The question for a pod. joined: features that it asks for by what it names (a namespace that is the host's)."""
    platforms = {for_platform(image.os) for image in images}
    return Question(
        spec=spec,
        images=images,
        features=frozenset(needed(spec) | platforms | {*joined}),
        default=config.sandbox,
        rules=rules_for(config.policy, namespace=spec.namespace, labels=spec.labels),
        kinds=kinds,
        probe=probe,
    )


async def choose(question: Question) -> Choice:
    """The kind for a pod. Raises InvalidArgument (no such kind), Unsupported (it cannot), PermissionDenied (policy)."""
    wish = wish_of(question)
    passed_over: list[PassedOver] = []
    if wish.kind == AUTO:
        kind, passed_over = await _strongest(question)
    else:
        kind = _named(question, wish)
    return Choice(
        kind=kind.name,
        level=level_of(kind.level, question.features),
        asked=wish.kind,
        by=wish.by,
        passed_over=passed_over,
        notes=question.notes,
        rules=[rule.name for rule in question.rules],
    )


# -- who asked for what -----------------------------------------------------------------------------------------------


def wish_of(question: Question) -> Wish:
    """The first who says something. What an image wanted and did not get is noted in `question.notes`."""
    spec = question.spec
    if spec.sandbox:
        return Wish(spec.sandbox, "request")
    if spec.annotations.get(WISH):
        return Wish(spec.annotations[WISH], "annotation")
    default = _default(question)
    return _of_images(question, default) or default


def _default(question: Question) -> Wish:
    """An image of modules means wasm on every node, for nothing else runs it."""
    if any(for_platform(image.os) == "wasm-modules" for image in question.images):
        return Wish("wasm", "built-in")
    if question.default:
        return Wish(question.default, "node")
    return Wish(BUILT_IN, "built-in")


def _of_images(question: Question, default: Wish) -> Wish | None:
    """What the images' labels ask for. They may ask for more isolation than the default, never for less: whoever made
    an image is not whom the node belongs to."""
    asked = {image.kind: image.ref for image in question.images if image.kind}
    if len(asked) > 1:
        said = ", ".join(f"{ref} wants {kind}" for kind, ref in sorted(asked.items()))
        raise InvalidArgument(f"the pod's images want different kinds: {said}", hint="say which: --sandbox KIND")
    for kind, ref in asked.items():
        if not _may_ask(question, kind, default):
            question.notes.append(f"image {ref} asks for {kind!r} and may not weaken the default {default.kind!r}")
            return None
        return Wish(kind, "image")
    return None


def _may_ask(question: Question, kind: str, default: Wish) -> bool:
    if AUTO in (kind, default.kind):
        return default.kind in (BUILT_IN, kind)
    wanted = _known(question, kind, _WHO["image"])
    return not is_weaker(wanted.level, _known(question, default.kind, _WHO[default.by]).level)


# -- a kind that was named --------------------------------------------------------------------------------------------


def _named(question: Question, wish: Wish) -> Kind:
    kind = _known(question, wish.kind, _WHO[wish.by])
    refuse_unless_able(kind.name, kind.able(), question.features)
    level = level_of(kind.level, question.features)
    refuse_forbidden(f"a pod of kind {kind.name!r}", question.rules, level, question.features)
    return kind


def _known(question: Question, name: str, who: str = "") -> Kind:
    kind = question.kinds.get(name)
    if kind is not None and not kind.is_planned:
        return kind
    try:
        return kind_of(name)
    except DrupeError as error:
        error.message += f", which {who} asks for" if who else ""
        raise


# -- the strongest that will do ---------------------------------------------------------------------------------------


async def _strongest(question: Question) -> tuple[Kind, list[PassedOver]]:
    passed_over: list[PassedOver] = []
    for kind in question.kinds.values():
        reason = unfit(kind, question.features, question.rules) or await question.probe(kind.name)
        if not reason:
            return kind, passed_over
        passed_over.append(PassedOver(kind=kind.name, reason=reason))
    raise _none_left(question, passed_over)


def unfit(kind: Kind, features: Collection[str], rules: Iterable[PolicyRule]) -> str:
    """Why a kind cannot take a pod with these features under these rules; "" when it can."""
    if kind.is_planned:
        return "not built in this version"
    able = kind.able()
    for feature in lacking(able, features):
        return f"cannot {FEATURES[feature]}: {able.get(feature, 'no: not declared').partition(': ')[2]}"
    found = objection(rules, level_of(kind.level, features), features)
    return found[1] if found else ""


def _none_left(question: Question, passed_over: list[PassedOver]) -> DrupeError:
    """Refused by the policy, if that alone stood in the way of a kind; else by what the kinds can do."""
    cause = "; ".join(f"{one.kind}: {one.reason}" for one in passed_over)
    for kind in question.kinds.values():
        found = objection(question.rules, level_of(kind.level, question.features), question.features)
        if found is not None and not unfit(kind, question.features, ()):
            return PermissionDenied(f"the pod is refused: {found[1]}", cause=cause, rule=found[0].name)
    return Unsupported("no kind of sandbox can run this pod here", cause=cause, hint="see drupe doctor")

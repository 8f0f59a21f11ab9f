"""What a spec needs of a kind, and the refusal of what the kind cannot do. The words are in `features`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from drupe.errors import Unsupported
from drupe.sandboxers.features import FEATURES
from drupe.sandboxers.fields import asked
from drupe.spec.container import ContainerSpec, ExecSpec
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources

__all__ = [
    "FEATURES",
    "for_platform",
    "lacking",
    "needed",
    "needed_by_addition",
    "needed_by_exec",
    "needed_by_update",
    "refuse_unless_able",
]


def needed(spec: PodSpec) -> set[str]:
    """The features that a pod's spec asks for, its images' platforms aside."""
    return set(asked(spec))


def needed_by_addition(container: ContainerSpec, others: Collection[ContainerSpec]) -> set[str]:
    """The features that one more container asks for, in a pod that has `others`."""
    features = set(asked(container))
    if others:
        features.add("multi-container")
        if any(one.resources != Resources() for one in (container, *others)):
            features.add("container-limits")
    return features


def needed_by_exec(spec: ExecSpec) -> set[str]:
    """The features that a further process asks for."""
    return set(asked(spec))


def needed_by_update(resources: Resources) -> set[str]:
    """The features that a change of limits asks for."""
    return {"update", *asked(resources)}


def for_platform(os: str) -> str:
    """The feature that running an image of this operating system takes ("wasi" and "wasip1" are modules)."""
    return "wasm-modules" if os.startswith("wasi") else "linux-programs"


def lacking(able: Mapping[str, str], features: Collection[str]) -> list[str]:
    """Those of `features` that the table denies."""
    return [feature for feature in sorted(features) if able.get(feature, "no").startswith("no")]


def refuse_unless_able(kind: str, able: Mapping[str, str], features: Collection[str]) -> None:
    """Raise Unsupported naming the first of `features` that the table denies."""
    for feature in lacking(able, features):
        raise Unsupported(
            f"{kind} sandboxes cannot {FEATURES[feature]}",
            kind=kind,
            feature=feature,
            cause=able.get(feature, "no: not declared").partition(": ")[2],
            hint="drupe system capabilities shows what each kind can do",
        )

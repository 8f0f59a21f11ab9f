"""What a host can run: its kinds of sandbox, and what the doctor found."""

from __future__ import annotations

from drupe.spec.base import Record, Spec


class KindInfo(Record):
    """A kind of sandbox on this host. level: how strong its boundary is. isolates: what stands between workload and
    host. state: "ok" (`cause` may say why `auto` passes it over), "fail" (why it cannot run here) or "planned"."""

    name: str
    level: str
    isolates: str
    state: str
    cause: str = ""


class CapabilityTable(Record):
    """kinds: sandbox kind to feature to "yes", "no: reason" or "limited: reason", whether it can run here or not.
    features: what each means. about: all kinds, strongest first, the planned ones too."""

    kinds: dict[str, dict[str, str]]
    features: dict[str, str] = {}
    about: list[KindInfo] = []


class Probe(Record):
    """One functional probe of `doctor`. state: "ok", "warn" or "fail"; cause and mend are one line each."""

    name: str
    state: str
    cause: str = ""
    mend: str = ""
    took_ms: float = 0.0


class ProbeList(Record):
    probes: list[Probe]


class Doctor(Spec):
    """fresh: probe again instead of answering from the cache."""

    fresh: bool = False

"""Templates: sandboxes that were started once and kept, from which others of their size start faster."""

from __future__ import annotations

from drupe.spec.base import Record, Spec


class TemplateInfo(Record):
    """guest: digest of what it has booted. size_bytes: on disk. basis: what it depends on beside the size of pods; with
    another than the present one no pod starts from it any more. files: tells whether its files are what was saved."""

    id: str
    kind: str
    memory_bytes: int
    processors: int
    guest: str
    accelerator: str
    created_at: float
    size_bytes: int = 0
    basis: str = ""
    files: str = ""


class TemplateCreate(Spec):
    """For pods of the kind with these limits; None: without."""

    kind: str = "vm"
    memory_bytes: int | None = None
    cpus: float | None = None


class TemplateList(Record):
    templates: list[TemplateInfo]

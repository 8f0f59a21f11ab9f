"""Finding an image in the catalogue by what people write."""

from __future__ import annotations

from collections.abc import Collection

from drupe.errors import InvalidArgument, NotFound
from drupe.images.index import Catalogue
from drupe.images.reference import as_id_prefix, parse


def find(catalogue: Catalogue, ref: str) -> tuple[str, str]:
    """(manifest digest, canonical name if it was found by one). Raises NotFound, InvalidArgument."""
    prefix = as_id_prefix(ref)
    if not ref.startswith("sha256:") or not prefix:
        try:
            reference = parse(ref)
        except InvalidArgument:
            if not prefix:
                raise
        else:
            if reference.digest:
                digest = catalogue.aliases.get(reference.digest, reference.digest)
                if digest in catalogue.images:
                    return digest, ""
            elif reference.canonical in catalogue.names:
                return catalogue.names[reference.canonical], reference.canonical
    if prefix and (digests := _by_prefix(catalogue, prefix)):
        if len(digests) > 1:
            raise InvalidArgument(f"image prefix {ref!r} is ambiguous: {len(digests)} images begin with it")
        return digests.pop(), ""
    raise NotFound(f"no image {ref!r} in the store", hint=_not_found_hint(catalogue, ref))


def _by_prefix(catalogue: Catalogue, prefix: str) -> set[str]:
    wanted = f"sha256:{prefix}"
    found = {
        record.digest
        for record in catalogue.images.values()
        if record.digest.startswith(wanted) or record.id.startswith(wanted)
    }
    return found | {target for alias, target in catalogue.aliases.items() if alias == wanted}


def _not_found_hint(catalogue: Catalogue, ref: str) -> str:
    import difflib  # only for this hint

    short = {familiar(name).removesuffix(":latest"): familiar(name) for name in catalogue.names}
    near = [short[key] for key in difflib.get_close_matches(ref.removesuffix(":latest"), short, n=3, cutoff=0.6)]
    advice = f"drupe images lists them; drupe image pull {ref} gets it"
    return f"did you mean {' or '.join(near)}? else {advice}" if near else advice


def familiar(canonical: str) -> str:
    """The short form of a stored name."""
    return parse(canonical).familiar


def has_labels(labels: dict[str, str], wanted: Collection[str]) -> bool:
    for item in wanted:
        key, equals, value = item.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True

"""Which of the images in a multi-platform index is meant (image-spec image-index.md)."""

from __future__ import annotations

import platform as _platform
from collections.abc import Sequence

from drupe.errors import InvalidArgument, NotFound
from drupe.images.media import Descriptor, Platform

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64"}
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


def host_platform() -> Platform:
    machine = _platform.machine()
    return Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))


def parse_platform(text: str) -> Platform:
    """ "os/arch[/variant]"; "" is this host. Raises InvalidArgument."""
    if not text:
        return host_platform()
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise InvalidArgument(f"bad platform {text!r}", hint="write os/arch or os/arch/variant, such as linux/arm64")
    architecture = _ARCHITECTURES.get(parts[1], parts[1])
    return Platform(os=parts[0], architecture=architecture, variant=parts[2] if len(parts) == 3 else "")


def matches(offered: Platform, wanted: Platform) -> bool:
    """Whether an image for `offered` is what `wanted` asks for; an unnamed variant is the usual one."""
    if is_wasm(wanted) and is_wasm(offered):
        return wanted.os in ("wasi", offered.os)  # the name of the platform, before WASI had versions
    usual = _DEFAULT_VARIANT.get(wanted.architecture, "")
    return (
        offered.os == wanted.os
        and offered.architecture == wanted.architecture
        and (offered.variant or usual) == (wanted.variant or usual)
    )


def is_wasm(platform: Platform) -> bool:
    """Whether images for it are WebAssembly modules: wasi/wasm, wasip1/wasm, wasip2/wasm."""
    return platform.architecture == "wasm"


def choose(manifests: Sequence[Descriptor], wanted: Platform, *, where: str) -> Descriptor:
    """The manifest for `wanted`, or, where the index has nothing else that could run here, for WebAssembly. One without
    a platform is taken only when it is alone. Raises NotFound."""
    for descriptor in manifests:
        if descriptor.platform is not None and matches(descriptor.platform, wanted):
            return descriptor
    if len(manifests) == 1 and manifests[0].platform is None:
        return manifests[0]
    modules = [d for d in manifests if d.platform is not None and is_wasm(d.platform)]
    if modules and matches(host_platform(), wanted):
        return modules[0]
    offered = sorted({str(d.platform) for d in manifests if d.platform is not None and d.platform.os != "unknown"})
    raise NotFound(
        f"{where} has no image for {wanted}",
        hint=f"it has {', '.join(offered)}: choose one with --platform" if offered else "its index is empty",
    )

"""What gVisor sandboxes can do."""

from __future__ import annotations

from collections.abc import Mapping

from drupe.sandboxers.features import FEATURES

_SAID: dict[str, str] = {
    "wasm-modules": "no: the sentry is a Linux kernel and runs no WebAssembly",
}
ABLE: Mapping[str, str] = {feature: _SAID.get(feature, "yes") for feature in FEATURES}

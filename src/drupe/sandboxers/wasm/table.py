"""What Wasm sandboxes can do."""

from __future__ import annotations

from drupe.sandboxers.capabilities import FEATURES

_SAID = {
    "tty": "limited: WASI tells a module that it has a terminal, and not the terminal's size",
    "signals": "limited: WASI has no signals, so a module catches none: what would end a program ends it",
    "host-pid": "no: a module has no view of processes",
    "shared-pid": "no: a module has no view of processes",
    "devices": "no: WASI has no devices",
    "hooks": "no: hooks are for Linux containers: there is no root and no process of that kind to prepare",
    "seccomp": "no: the engine's own filter always holds, and is narrower than any profile for programs",
    "privileged": "no: a module has no way to use privileges",
    "checkpoint": "no: the engines cannot write out a running module",
    "snapshot": "no: the engines cannot write out a running module",
}
CAPABILITIES = {feature: _SAID.get(feature, "yes") for feature in FEATURES}

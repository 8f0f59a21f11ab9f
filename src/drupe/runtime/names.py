"""Ids and names."""

from __future__ import annotations

import random
import secrets

_LEFT = [
    "amber",
    "brisk",
    "calm",
    "clear",
    "crisp",
    "dapper",
    "eager",
    "fond",
    "frank",
    "glad",
    "hale",
    "keen",
    "kind",
    "lively",
    "lucid",
    "mellow",
    "neat",
    "noble",
    "plain",
    "quick",
    "quiet",
    "ready",
    "ripe",
    "round",
    "sharp",
    "shy",
    "smooth",
    "sound",
    "spry",
    "sturdy",
    "sunny",
    "sweet",
    "swift",
    "tart",
    "trim",
    "warm",
    "wise",
    "young",
]
_RIGHT = [
    "almond",
    "apricot",
    "bergamot",
    "bilberry",
    "buckthorn",
    "cashew",
    "cherry",
    "coffee",
    "cornel",
    "damson",
    "date",
    "elder",
    "greengage",
    "hackberry",
    "jujube",
    "juniper",
    "lychee",
    "mango",
    "mirabelle",
    "myrobalan",
    "nectarine",
    "olive",
    "palm",
    "peach",
    "pecan",
    "pistachio",
    "plum",
    "prune",
    "rowan",
    "sloe",
    "sumac",
    "walnut",
]

ID_BYTES = 16


def new_id() -> str:
    """32 hexadecimal digits from the kernel's generator."""
    return secrets.token_hex(ID_BYTES)


def new_name() -> str:
    """A name a person can say. Not unique by itself: the caller checks."""
    return f"{random.choice(_LEFT)}_{random.choice(_RIGHT)}"  # noqa: S311 a name, not a secret

"""What the programs that make containers say when they fail."""

from __future__ import annotations

import contextlib
import json


def last_message(text: str) -> str:
    """The last `msg` of a JSON log (crun, runc, runsc), or the text's last line.

    runsc's processes write their objects one after the other without an end of line.
    """
    lines = [line for line in text.strip().replace('}{"', '}\n{"').splitlines() if line.strip()]
    for line in reversed(lines):
        with contextlib.suppress(ValueError, AttributeError):
            message = json.loads(line).get("msg")
            if message:
                return str(message)
    return lines[-1].strip() if lines else "no message"

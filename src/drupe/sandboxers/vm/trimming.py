"""The plugin (native/trim) by which QEMU's emulator gives the translated code of a quiet machine back, and shares its
kernel's instructions with others."""

from __future__ import annotations

from pathlib import Path

from drupe.errors import NotFound
from drupe.hypervisors.qemu.arguments import plugin_words
from drupe.keeper.client import Keeper
from drupe.keeper.programs import find_program

PLUGIN = "libdrupe_trim.so"
_TRIED_WITHIN_S = 10.0
_NO_MACHINE = ("-M", "none", "-nodefaults", "-display", "none", "-S", "-accel", "tcg,tb-size=1", "-monitor", "stdio")
_found: dict[tuple[str, int, str], bool] = {}  # what is known of a program, at its time, and a plugin


async def find_plugin(keeper: Keeper, program: str) -> Path | None:
    """Its path, if it was built and this QEMU takes it: a QEMU that does not know the version of its interface does
    not start with it. So it is tried, once for each program."""
    try:
        plugin = find_program(PLUGIN)
    except NotFound:
        return None
    key = (program, Path(program).stat().st_mtime_ns, str(plugin))
    if key not in _found:
        argv = [program, *_NO_MACHINE, "-plugin", f"{plugin},{plugin_words()}"]
        done = await keeper.run(argv, stdin="quit\n", timeout_s=_TRIED_WITHIN_S)
        _found[key] = done.exit == 0 and not done.timed_out
    return plugin if _found[key] else None

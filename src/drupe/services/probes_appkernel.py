"""Whether application kernels can run here: the platform under them, tried."""

from __future__ import annotations

import json

from drupe.errors import NotFound
from drupe.keeper.programs import find_program
from drupe.sandboxers.appkernel.platforms import probe_kvm
from drupe.services.probing import Problem, run
from drupe.services.probing import program as find

_PATIENCE = "the host's kernel must have seccomp notifications (Linux 5.9) and let this user make PID namespaces"


def appkernel() -> str:
    """Run a guest that does nothing but call. Answers what a call costs."""
    try:
        kernel = find_program("drupe-appkernel")
    except NotFound as error:
        raise Problem(error.message, error.hint) from None
    find("mkfs.erofs", package="erofs-utils")
    done = run([str(kernel), "probe"])
    if done.code != 0:
        raise Problem(done.last_line, _PATIENCE)
    figures = json.loads(done.stdout)
    verdict = probe_kvm(kernel)
    kvm = f"kvm: {verdict.why}" if verdict.fast else f"kvm: {verdict.why}: trap is used"
    return f"platform {figures['platform']}, {figures['call_ns'] / 1000:.1f} µs a call; {kvm}"

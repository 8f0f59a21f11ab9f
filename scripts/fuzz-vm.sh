#!/usr/bin/env bash
# Throw nonsense at everything that reads what a machine sends, each target for MINUTES (30), JOBS (2) at a time.
#   scripts/fuzz-vm.sh [PYTEST ARGUMENT …]
set -euo pipefail
cd "$(dirname "$0")/.."
targets=(tests/fuzz/test_guest_*.py tests/fuzz/test_ttrpc.py tests/fuzz/test_machine_words.py)
export DRUPE_FUZZ_MINUTES="${MINUTES:-30}"
.venv/bin/python -m pytest --collect-only -q "${targets[@]}" "$@" | grep '::' |
    xargs -P "${JOBS:-2}" -I{} nice .venv/bin/python -m pytest -q -s --timeout=0 -p no:cacheprovider {}

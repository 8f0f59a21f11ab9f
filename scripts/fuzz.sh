#!/usr/bin/env bash
# Throw nonsense at everything that reads what a machine sends (vm), or at the application kernel, each target for MINUTES
# (30), JOBS (2) at a time. What a failure of the application kernel was is kept in build/fuzz.
#   scripts/fuzz.sh vm|appkernel [PYTEST ARGUMENT …]
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
vm) targets=(tests/fuzz/test_guest_*.py tests/fuzz/test_ttrpc.py tests/fuzz/test_machine_words.py) ;;
appkernel) targets=(tests/fuzz/test_appkernel.py tests/fuzz/test_appkernel_packets.py) ;;
*) echo "usage: scripts/fuzz.sh vm|appkernel [PYTEST ARGUMENT …]" >&2; exit 2 ;;
esac
shift
export DRUPE_FUZZ_MINUTES="${MINUTES:-30}"
.venv/bin/python -m pytest --collect-only -q "${targets[@]}" "$@" | grep '::' |
    xargs -P "${JOBS:-2}" -I{} nice .venv/bin/python -m pytest -q -s --timeout=0 -p no:cacheprovider {}

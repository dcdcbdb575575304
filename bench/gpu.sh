#!/usr/bin/env bash
# Tests and times the kernels on the GPU of this machine, in one call of a few minutes, with nothing installed:
#
#     bench/gpu.sh [folder for the record]
#
# The tests run with the real compiler; their outcome stands in the record and in the exit status.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="kernels:.${PYTHONPATH:+:$PYTHONPATH}"
PYTHON="${PYTHON:-python3}"

if ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "no GPU found" >&2
    exit 2
fi

workers=()
if "$PYTHON" -c "import xdist" 2>/dev/null; then workers=(-n 8); fi
timeout 240 "$PYTHON" -m pytest tests/kernels -q -p no:cacheprovider "${workers[@]}"
tests=$?

timeout 280 "$PYTHON" -m bench.gpu --tests-status "$tests" "$@"
measured=$?
exit $((measured != 0 ? measured : tests))

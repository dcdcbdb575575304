#!/usr/bin/env bash
# Tests and times the kernels on the GPU of this machine, in one call of a few minutes, with nothing installed:
#
#     bench/gpu.sh [folder for the record] [options of `python -m bench gpu`]
#
# The tests run with the real compiler; their outcome stands in the record and in the exit status. TESTS_SECONDS and
# GPU_SECONDS say how long each part may take.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="kernels:.${PYTHONPATH:+:$PYTHONPATH}"
PYTHON="${PYTHON:-python3}"

if ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "no GPU found" >&2
    exit 2
fi

if "$PYTHON" -c "import pytest, hypothesis" 2>/dev/null; then
    workers=()
    if "$PYTHON" -c "import xdist" 2>/dev/null; then workers=(-n 8); fi
    # Where Triton compiles for other GPUs is checked without one: here only what runs.
    timeout "${TESTS_SECONDS:-110}" "$PYTHON" -m pytest tests/kernels -q -p no:cacheprovider "${workers[@]}" \
        --ignore=tests/kernels/test_compilation.py
    tests=$?
    outcome=(--tests-status "$tests")
else
    tests=0
    outcome=()
fi

"$PYTHON" -m bench gpu --seconds "${GPU_SECONDS:-170}" "${outcome[@]}" "$@"
measured=$?
exit $((measured != 0 ? measured : tests))

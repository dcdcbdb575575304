#!/usr/bin/env bash
# Tests, tunes and times the kernels on the GPU of this machine, in one call of a few minutes, with nothing installed:
#
#     bench/gpu.sh [folder for the records] [options of `python -m bench gpu`]
#
# The tests run with the real compiler; their outcome stands in the record and in the exit status. TESTS_SECONDS,
# TUNE_SECONDS and GPU_SECONDS say how long each part may take; 0 leaves the tests or the tuning out.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="kernels:.${PYTHONPATH:+:$PYTHONPATH}"
PYTHON="${PYTHON:-python3}"
folder="${1:-bench/results}"
shift || true

if ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "no GPU found" >&2
    exit 2
fi

tests=0
outcome=()
if [ "${TESTS_SECONDS:=90}" != 0 ] && "$PYTHON" -c "import pytest, hypothesis" 2>/dev/null; then
    workers=()
    if "$PYTHON" -c "import xdist" 2>/dev/null; then workers=(-n 12 --dist worksteal); fi
    # What Triton makes of the kernels for other GPUs is tested where there is none.
    timeout "$TESTS_SECONDS" "$PYTHON" -m pytest tests/kernels -q -p no:cacheprovider "${workers[@]}" \
        --ignore=tests/kernels/test_compilation.py
    tests=$?
    outcome=(--tests-status "$tests")
fi

if [ "${TUNE_SECONDS:=70}" != 0 ]; then
    timeout "$((TUNE_SECONDS + 20))" "$PYTHON" -m bench tune "$folder" --seconds "$TUNE_SECONDS"
    cp kernels/ahernet_kernels/tuning.json "$folder" || true
fi

"$PYTHON" -m bench gpu "$folder" --seconds "${GPU_SECONDS:-140}" "${outcome[@]}" "$@"
measured=$?

# Pictures and the Markdown table, where matplotlib is; the short table above stays the last thing said.
record=$(ls -t "$folder"/gpu_*.json 2>/dev/null | head -n 1)
if [ -n "$record" ]; then "$PYTHON" -m bench report "$record" --out "$folder" >/dev/null 2>&1; fi
exit $((measured != 0 ? measured : tests))

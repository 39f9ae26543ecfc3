#!/bin/sh
# Runs the tests that need a GPU, then benchmarks/gpu.py; about ten minutes on one GPU.  Nothing is downloaded.
#   benchmarks/gpu.sh [--small] [--minutes 9] [--out FOLDER]
# Needs redistill with its dev packages.  Rivals (liger-kernel, trl) are measured if they are installed.
# The result of the tests is the field "tests" of gpu.json.  If they fail, the script measures all the same, and exits with 1.
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}"
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    "$python" -m pytest -q -m gpu tests/gpu
    code=$?
    if [ "$code" -eq 0 ]; then tests=passed; else tests="failed (pytest exited with $code)"; fi
else
    code=0 tests="not run: no GPU on this machine"
    echo "$tests"
fi
"$python" -m benchmarks.gpu --tests "$tests" "$@" || exit
[ "$code" -eq 0 ] || { echo "tests that need a GPU: $tests" >&2; exit 1; }

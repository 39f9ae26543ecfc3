#!/bin/sh
# Runs the tests that need a GPU, then benchmarks/gpu.py; about ten minutes on one GPU.  Nothing is downloaded.
#   benchmarks/gpu.sh [--small] [--minutes 9] [--out FOLDER]
# Needs redistill with its dev packages.  Rivals (liger-kernel, trl) are measured if they are installed.
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}"
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    "$python" -m pytest -q -m gpu tests/gpu
else
    echo "no GPU on this machine: the tests that need one are skipped"
fi
exec "$python" -m benchmarks.gpu "$@"

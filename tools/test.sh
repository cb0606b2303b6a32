#!/usr/bin/env bash
# Sets up and passes the tests: bash tools/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
source tools/browser.sh
source tools/shells.sh

# One thread per worker: the tests are many and small.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1
echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy
if [ $# -gt 0 ]; then
    echo "== pytest"
    exec python -m pytest "$@"
fi
echo "== docs"
python -m sphinx -W --keep-going -q -E -d build/doctrees docs site
export SLA_CKPT_SITE=$PWD/site
echo "== pytest"
exec python -m pytest -q -n "$(python -c 'import os; print(max(2, min(8, os.cpu_count() or 2)))')" --dist loadfile

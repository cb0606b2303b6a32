#!/usr/bin/env bash
# Builds the release, sdist and wheel, into a folder (dist/ by default): bash tools/build.sh [DIR]
# The same commit gives the same bytes, wherever and whenever it is built; the time in them is the
# commit's. tests/supply_chain proves it. With SOURCE_DATE_EPOCH set, it builds what lies there.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "${1:-$root/dist}"
out=$(cd "${1:-$root/dist}" && pwd)
python=${PYTHON:-python}

cd "$root"
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    if [ -n "$(git status --porcelain)" ]; then
        echo "error: the working tree differs from the commit; commit first" >&2
        exit 1
    fi
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
fi
export SOURCE_DATE_EPOCH
"$python" -m hatchling build -d "$out"
cd "$out"
"$python" -c '
import hashlib, pathlib
for path in sorted(pathlib.Path().glob("sla_ckpt-*")):
    print(hashlib.sha256(path.read_bytes()).hexdigest(), "", path.name)'

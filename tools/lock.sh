#!/usr/bin/env bash
# Writes requirements-dev.lock anew: bash tools/lock.sh   (needs uv: pip install uv)
# One lock for Linux, macOS and Windows and Python 3.11 to 3.13, every file with its hash. Use it
# with SLA_CKPT_LOCKED=1 bash tools/test.sh. torch is left out, with what only its CUDA build
# needs: which build is right depends on the machine, and tools/venv.sh chooses it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lock=requirements-dev.lock

compile() {
    uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
        --no-emit-index-url --no-emit-find-links --quiet "$@"
}

left_out=()
for name in $(compile --no-annotate --no-header | grep -oE '^(torch|nvidia|cuda)[a-z0-9-]*'); do
    left_out+=(--no-emit-package "$name")
done
{
    echo "# The development environment, locked. Made by: bash tools/lock.sh"
    echo "# Without torch and its CUDA packages, of which tools/venv.sh installs the build that fits."
    echo "# Use: SLA_CKPT_LOCKED=1 bash tools/test.sh"
    compile --generate-hashes --no-header --no-annotate "${left_out[@]}" | sed '/^$/,$d'
} >"$lock.new"
mv "$lock.new" "$lock"
echo "$(grep -cE '^[a-z0-9]' "$lock") pinned versions in $lock"

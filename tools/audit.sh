#!/usr/bin/env bash
# Asks the advisory database about every locked dependency: bash tools/audit.sh
# Needs the network, and pip-audit (pip install pip-audit); so CI does not run it. Run it before a
# release and whenever the lock changes. A package the database cannot be asked about is a failure,
# not a pass (--strict). torch is not in the lock and is asked about as tools/venv.sh installs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Advisories that do not concern us: one "--ignore-vuln ID" a line, with the reason behind it.
exceptions=()

listed=$(mktemp)
trap 'rm -f "$listed"' EXIT
sed -nE 's/^([a-z0-9._-]+==[^ ]+)( ;[^\\]*)?( \\)?$/\1\2/p' requirements-dev.lock >"$listed"
grep -oE "torch==[0-9.]+" tools/venv.sh | head -1 >>"$listed"
pip-audit --strict --disable-pip --no-deps -r "$listed" ${exceptions[@]+"${exceptions[@]}"}

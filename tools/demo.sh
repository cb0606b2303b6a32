#!/usr/bin/env bash
# Sets up and runs the main job end to end: bash tools/demo.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
export TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1
exec python -m tools.demo "$@"

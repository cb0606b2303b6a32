#!/usr/bin/env bash
# Verifies every checkpoint that SimpleTuner saves and, if a repository is named, pushes it.
#
#   --post_checkpoint_script="/path/to/simpletuner_hook.sh '{local_checkpoint_path}' [org/model]"
#
# What it finds goes to the training's output and to sla-ckpt.log in the output directory. Only a
# checkpoint without errors is pushed. Training goes on whatever this script does; SimpleTuner
# logs its exit code. docs/integrations.md tells more.
set -uo pipefail

checkpoint=${1:?usage: simpletuner_hook.sh CHECKPOINT [REPO]}
repo=${2:-}
log=$(dirname -- "$checkpoint")/sla-ckpt.log

# Saves may follow each other faster than an upload goes; the next one waits for its turn.
if [ -n "$repo" ] && command -v flock > /dev/null; then
    exec 9>> "$log.lock"
    flock 9
fi

{
    echo "== $(date -u +%Y-%m-%dT%H:%M:%SZ) $checkpoint"
    sla-ckpt verify -- "$checkpoint"
    code=$?
    if [ "$code" = 0 ] && [ -n "$repo" ]; then
        sla-ckpt push -- "$repo" "$checkpoint"
        code=$?
    fi
    exit "$code"
} 2>&1 | tee -a -- "$log"

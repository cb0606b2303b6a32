# Sourced by demo.sh and test.sh: makes .venv in the project root, installs sla-ckpt with its
# development extras, and puts it on the PATH. A second run finds everything there and is quick.
# Set SLA_CKPT_VENV to use another folder, PYTHON to choose the interpreter, SLA_CKPT_LOCKED=1 to
# install the versions of requirements-dev.lock, whose files are checked against their hashes.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${SLA_CKPT_VENV:-$PWD/.venv}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found; set PYTHON=/path/to/python3" >&2
    return 1
}

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    "$python" -m venv "$venv" || {
        echo "error: cannot make $venv (on Debian and Ubuntu: apt install python3-venv)" >&2
        exit 1
    }
fi
export PATH="$venv/bin:$PATH"
unset PYTHONHOME

stamp=$venv/.sla-ckpt-installed
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ tools/venv.sh -nt "$stamp" ]; then
    echo "== setting up $venv" >&2
    if ! python -c 'import torch' 2>/dev/null; then
        # The CPU build spares gigabytes where no GPU could use them. Its local version (+cpu)
        # sorts above the same release elsewhere, so an index that has both gives this one.
        index=()
        if [ "$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1; then
            index=(--extra-index-url https://download.pytorch.org/whl/cpu)
        fi
        pip install --quiet --retries 1 --timeout 60 ${index[@]+"${index[@]}"} 'torch==2.13.0'
    fi
    if [ -n "${SLA_CKPT_LOCKED:-}" ]; then
        pip install --quiet --no-deps --require-hashes -r requirements-dev.lock
        pip install --quiet --no-deps --editable .
    else
        pip install --quiet --editable '.[dev]'
    fi
    touch "$stamp"
fi

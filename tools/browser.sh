# Sourced by test.sh: a Chromium for the tests that look at pages (tests/report/test_in_browser.py).
# One that is there is taken; in CI one is installed, elsewhere the tests are skipped with a hint.
# Set SLA_CKPT_BROWSER to name one.

source tools/packages.sh

has_browser() {
    local name
    if [ -n "${SLA_CKPT_BROWSER:-}" ]; then return; fi
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$name" >/dev/null 2>&1; then return; fi
    done
    python - <<'PYTHON'
import pathlib, sys
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    sys.exit(not pathlib.Path(playwright.chromium.executable_path).exists())
PYTHON
}

install_browser() {
    if has_apt; then
        apt_install chromium
    else
        timeout 180 python -m playwright install chromium
    fi
}

if ! has_browser; then
    if [ "${CI:-}" = true ]; then
        echo "== installing Chromium" >&2
        install_browser >/dev/null 2>&1 || true
    fi
    has_browser || echo "== no Chromium: the tests marked browser are skipped (on Debian:" \
        "apt-get install chromium; elsewhere: python -m playwright install chromium)" >&2
fi

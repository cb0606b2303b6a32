# Sourced by test.sh: zsh and fish, whose tab completion tests/integrations/test_completion.py tries.
# In CI they are installed where root may; elsewhere the tests of a shell that is missing are skipped.

source tools/packages.sh

missing=()
for name in zsh fish; do
    command -v "$name" >/dev/null 2>&1 || missing+=("$name")
done
if [ "${#missing[@]}" -gt 0 ] && [ "${CI:-}" = true ] && has_apt; then
    echo "== installing ${missing[*]}" >&2
    apt_install "${missing[@]}" >/dev/null 2>&1 ||
        echo "== ${missing[*]} could not be installed: their tests are skipped" >&2
fi

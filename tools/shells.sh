# Sourced by test.sh: zsh and fish, whose tab completion tests/integrations/test_completion.py tries.
# In CI they are installed where root may; elsewhere the tests of a shell that is missing are skipped.

missing=()
for name in zsh fish; do
    command -v "$name" >/dev/null 2>&1 || missing+=("$name")
done
if [ "${#missing[@]}" -gt 0 ] && [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] &&
    command -v apt-get >/dev/null 2>&1; then
    echo "== installing ${missing[*]}" >&2
    {
        apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive timeout 180 \
                apt-get install -y -qq --no-install-recommends "${missing[@]}"
    } >/dev/null 2>&1 || echo "== ${missing[*]} could not be installed: their tests are skipped" >&2
fi

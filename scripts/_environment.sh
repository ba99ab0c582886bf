# Sourced by the other scripts: makes .venv once, and again only when what it installs has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

_wanted=$(cat pyproject.toml constraints.txt setup.py gradscope/hooks/_native*.[ch] scripts/_environment.sh | cksum)
if [ "$(cat .venv/gradscope-installed 2>/dev/null || true)" != "$_wanted" ]; then
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "scripts need Python 3.11 or newer; '$python' is not: set PYTHON to one that is" >&2
        exit 2
    fi
    echo "making .venv (once)" >&2
    "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
    echo "$_wanted" >.venv/gradscope-installed
fi

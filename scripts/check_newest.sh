#!/usr/bin/env bash
# Do the fast tests pass with the newest versions that the bounds allow? A fresh environment, the tests, what changed.
#
#   scripts/check_newest.sh                                  # about 3 GB and ten minutes; the environment is removed
#   PYTHON=python3.12 KEEP=/tmp/newest scripts/check_newest.sh tests/search/test_index.py   # with another Python; kept there
#
# TORCH names PyTorch's version (by default the Makefile's). 0 when all pass; then widen a bound or run `make lock`.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${KEEP:-$(mktemp -d)/venv}"
[ -n "${KEEP:-}" ] || trap 'rm -rf "$(dirname "$venv")"' EXIT
make --no-print-directory "$venv/.dev" VENV="$venv" PYTHON="${PYTHON:-python3}" ${TORCH:+TORCH="$TORCH"}
# pip leaves an installed version alone if it fits; KEEP may name an old environment.
"$venv/bin/python" -m pip install -q --disable-pip-version-check --upgrade --upgrade-strategy eager \
  -r <(grep -v '^torch' requirements.txt) -r requirements-dev.txt \
  -c <("$venv/bin/python" -m pip freeze | grep '^torch==' | sed 's/+.*//')
echo "Against requirements.lock (<) this environment has (>):"
diff <(grep '==' requirements.lock) <("$venv/bin/python" -m uv pip freeze -q --python "$venv/bin/python" |
  grep -f <(sed -nE 's/^([^#=]+)==.*/^\1==/p' requirements.lock)) && echo "the same versions" || true
"$venv/bin/python" -m pip check || echo "(the packages above disagree; go on and see what the tests say)"
"$venv/bin/python" -m pytest -m "not slow and not gpu" "$@"

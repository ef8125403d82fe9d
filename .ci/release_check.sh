#!/usr/bin/env bash
# What a release has to stand: sdist and wheel, each Python in a clean environment, an example bundle predicted in a minute.
# Needs uv, a package index and setuptools for `python`. `release_check.sh 3.11 3.12` takes these Pythons; without arguments 3.11 to 3.13.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ "$#" -gt 0 ] || set -- 3.11 3.12 3.13
mkdir "$work/source" && git archive HEAD | tar -x -C "$work/source"
tar -xzf tests/fixtures/before_the_move.tar.gz -C "$work"
NIWAKI_KERNELS_BUILD=0 uv build --no-build-isolation --python "$(command -v python)" --sdist --wheel --out-dir "$work/dist" "$work/source"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
grep -qx "version: $version" CITATION.cff || { echo "CITATION.cff is not of version $version." >&2; exit 1; }
for python in "$@"; do
  begun=$SECONDS
  rm -rf "$work/venv" && uv venv --quiet --no-project --python "$python" "$work/venv"
  uv pip install --quiet --python "$work/venv/bin/python" "$work"/dist/*.whl
  (cd "$work" && venv/bin/niwaki predict run/bundle run/samples/3.png && venv/bin/niwaki docs howto/cpp >/dev/null)
  took=$((SECONDS - begun))
  echo "Python $python: installed and predicted in $took s"
  [ "$took" -lt 60 ] || { echo "Python $python took $took s, where a minute is allowed." >&2; exit 1; }
done
ls -l "$work/dist"

#!/usr/bin/env bash
# What a release has to stand: sdist and wheel, each Python in a clean environment, an example bundle predicted in a minute.
# Needs uv, a package index, setuptools for `python`, and each Python on PATH where uv cannot download it.
# `release_check.sh 3.11 3.12` takes these Pythons; without arguments 3.11 to 3.13.
# KERNELS=1 also builds the abi3 wheel with the CPU kernels (by the torch of `python`) and runs them beside a torch in each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ "$#" -gt 0 ] || set -- 3.11 3.12 3.13
kernels='import cpp_ext, torch
assert cpp_ext.kernels_in_use("cpu") != "reference", cpp_ext.build_info()
weight = torch.randn(64, 48, 3, 3)
torch.testing.assert_close(cpp_ext.filter_norm(weight, 2.0), cpp_ext.filter_norm_reference(weight, 2.0))
keep = torch.arange(0, 48, 3)
assert torch.equal(cpp_ext.channel_slice(weight, keep, keep), cpp_ext.channel_slice_reference(weight, keep, keep))
print(cpp_ext.instruction_set(), "under torch", torch.__version__)'
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
python -m zipfile -l "$work"/dist/*.whl | grep -q 'dist-info/sboms/niwaki-vision.cdx.json' ||
  { echo "The wheel carries no bill of materials." >&2; exit 1; }
if [ "${KERNELS:-0}" = 1 ]; then
  NIWAKI_CUDA=0 uv build --no-build-isolation --python "$(command -v python)" --wheel --out-dir "$work/kernels" "$work/source"
  made=$(ls "$work"/kernels/*-cp311-abi3-*.whl)
  torch=$(python -c 'import torch; print(torch.__version__.partition("+")[0])')
  for python in "$@"; do
    begun=$SECONDS
    rm -rf "$work/venv" && uv venv --quiet --no-project --python "$python" "$work/venv"
    uv pip install --quiet --python "$work/venv/bin/python" "$made" "torch==$torch"
    (cd "$work" && venv/bin/python -c "$kernels")
    echo "Python $python: the kernels run as installed, after $((SECONDS - begun)) s"
  done
fi
ls -l "$work/dist"

#!/usr/bin/env bash
# Compiles the CPU kernels for aarch64, without linking: what is portable in them becomes NEON. Needs g++-aarch64-linux-gnu
# and, but for the loops (`loops` as the only argument), torch's headers, which PYTHON finds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/csrc"
compiler=${CXX_AARCH64:-aarch64-linux-gnu-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
options=(-std=c++20 -O1 -ftree-vectorize -ffp-contract=off -fPIC -Wno-psabi)
"$compiler" "${options[@]}" -c cpu/loops_plain.cpp -o "$work/loops.o"
vectors=$("${compiler%g++}objdump" -d "$work/loops.o" | grep -cE 'fadd\s+v[0-9]+\.(4s|2d)' || true)
[ "$vectors" -gt 0 ] || { echo "niwaki: the loops compile for aarch64, but without NEON additions." >&2; exit 1; }
echo "niwaki: the loops compile for aarch64, with $vectors NEON additions."
[ "${1:-}" = loops ] && exit 0
torch=$("${PYTHON:-python}" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')/include
for source in norms slices select; do
  "$compiler" "${options[@]}" -fvisibility=hidden -I"$torch" -I"$torch/torch/csrc/api/include" \
    -DTORCH_TARGET_VERSION=0x020b000000000000 -fsyntax-only "cpu/$source.cpp"
done
echo "niwaki: norms, slices and select compile for aarch64."

#!/usr/bin/env bash
# The CPU kernels and their tests under AddressSanitizer and UndefinedBehaviorSanitizer, for every instruction set that
# runs here. Builds into a copy of the checkout, which stays as it is. Needs g++ with libasan; takes a few minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}
asan=$(g++ -print-file-name=libasan.so)
stdcxx=$(g++ -print-file-name=libstdc++.so)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r cpp_ext setup.py pyproject.toml README.md LICENSE tests "$work"
cd "$work"
rm -f cpp_ext/_C*.so
export NIWAKI_CUDA=0 CFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
export LDFLAGS="-fsanitize=address,undefined"
"$python" setup.py -q build_ext --inplace
# Python itself leaks on purpose; torch has its own operator new.
export LD_PRELOAD="$asan $stdcxx" ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH=$work
best=$("$python" -c "import cpp_ext; print(cpp_ext.instruction_set())")
for isa in $(printf '%s\n' avx512 avx2 plain | sed -n "/^$best\$/,\$p"); do
  echo "== $isa"
  NIWAKI_CPU=$isa "$python" -m pytest -q -p no:cacheprovider tests/cpp_ext \
    -k "not opcheck and not instruction_set and not compiled_graphs and not imports_no_torch" "$@"
done

#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and without a network: builds the kernels with the torch that is there, runs their CUDA
# tests, measures, and leaves benchmarks/gpu/results/<gpu>-<date>.json. Ends within 8 minutes. PYTHON names the Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
end=$((SECONDS + 470))
left() { echo $((end - SECONDS > 5 ? end - SECONDS : 5)); }

if ! gpu=$("$python" -c 'import sys, torch
sys.exit(1) if not torch.cuda.is_available() else print(torch.cuda.get_device_name().replace(" ", "-"))' 2>/dev/null); then
  echo "niwaki: no NVIDIA GPU that torch can use was found here; run this script on a machine that has one." >&2
  exit 3
fi
export PYTHONPATH=$PWD TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$python" -c 'import torch
print("%d.%d" % torch.cuda.get_device_capability())')}
mkdir -p benchmarks/gpu/results
out=benchmarks/gpu/results/$gpu-$(date +%F).json

timeout "$(left)" "$python" setup.py -q build_ext --inplace
if "$python" -c 'import hypothesis' 2>/dev/null; then
  # One short test under the memory checker first, where the checker works at all.
  if command -v compute-sanitizer >/dev/null && timeout 60 compute-sanitizer "$python" -c 'import torch
torch.ones(1, device="cuda")' >/dev/null 2>&1; then
    timeout 120 compute-sanitizer --error-exitcode 9 "$python" -m pytest -q tests/cpp_ext -k "cuda and opcheck"
  else
    echo "niwaki: compute-sanitizer does not work here; the tests run without it."
  fi
  timeout 180 "$python" -m pytest -q tests/cpp_ext -k cuda
else
  echo "niwaki: hypothesis is not installed, so the property tests do not run; the outputs are checked before timing."
fi
timeout "$(left)" "$python" -m benchmarks.gpu.kernels --out "$out"
if [ $((end - SECONDS)) -gt 30 ]; then
  timeout "$(left)" "$python" -m benchmarks.gpu.latency --seconds "$(left)" --out "${out%.json}-latency.json" ||
    echo "niwaki: latency.py failed or ran out of time."
else
  echo "niwaki: no time is left for latency.py; run it by itself."
fi
echo "niwaki: measured in $SECONDS s: $out"

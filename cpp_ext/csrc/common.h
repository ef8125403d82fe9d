// What every kernel shares: types, errors and small arithmetic.
// Only headers of the LibTorch stable ABI are allowed here: no ATen/, no c10/.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace niwaki {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws Error with the parts joined into one sentence. PyTorch turns std::out_of_range into IndexError and every
// other one into RuntimeError.
template <class Error = std::runtime_error, class... Parts>
inline void require(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw Error(sentence.str());
}

// The dimensions from the outermost in memory to the innermost, those of size 1 first; whether they fill it densely.
inline std::vector<int64_t> memory_order(const Tensor& x, bool& dense) {
  std::vector<int64_t> order(x.dim());
  for (int64_t d = 0; d < x.dim(); ++d) order[d] = d;
  const auto rest = std::stable_partition(order.begin(), order.end(), [&](int64_t d) { return x.size(d) == 1; });
  std::stable_sort(rest, order.end(), [&](int64_t a, int64_t b) { return x.stride(a) > x.stride(b); });
  int64_t expected = 1;
  dense = true;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    dense = dense && (x.size(*d) == 1 || x.stride(*d) == expected);
    expected *= x.size(*d);
  }
  dense = dense || x.numel() == 0;
  return order;
}

inline void require_one_device(const char* op, const std::vector<Tensor>& xs) {
  for (const Tensor& x : xs) {
    require(
        x.is_cpu() == xs[0].is_cpu() && x.get_device_index() == xs[0].get_device_index(), op,
        " got tensors on several devices: call it once for each.");
  }
}

}  // namespace niwaki

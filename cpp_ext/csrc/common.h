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

inline int64_t product(const int64_t* sizes, int64_t n) {
  int64_t result = 1;
  for (int64_t i = 0; i < n; ++i) result *= sizes[i];
  return result;
}

}  // namespace niwaki

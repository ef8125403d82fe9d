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
  const auto sizes = x.sizes(), strides = x.strides();
  std::vector<int64_t> order(sizes.size());
  // Inserted one by one: they mostly come sorted, and are few.
  const auto before = [&](int64_t a, int64_t b) {
    if (sizes[a] == 1 || sizes[b] == 1) return sizes[a] == 1 && sizes[b] != 1;
    return strides[a] > strides[b];
  };
  for (size_t d = 0; d < sizes.size(); ++d) {
    size_t at = d;
    for (; at > 0 && before(d, order[at - 1]); --at) order[at] = order[at - 1];
    order[at] = d;
  }
  int64_t expected = 1;
  dense = true;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    dense = dense && (sizes[*d] == 1 || strides[*d] == expected);
    expected *= sizes[*d];
  }
  dense = dense || expected == 0;
  return order;
}

// Contiguous memory that nobody has written, of `like`'s dtype and device: without the dispatcher's search by name.
inline Tensor fresh(const Tensor& like, const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) strides[d] = stride, stride *= std::max<int64_t>(shape[d], 1);
  int32_t dtype, device;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.data(), strides.data(), dtype, device, like.get_device_index(), &handle));
  return Tensor(handle);
}

inline void require_one_device(const char* op, const std::vector<Tensor>& xs) {
  if (xs.empty()) return;
  const bool cpu = xs[0].is_cpu();
  const auto index = xs[0].get_device_index();
  for (const Tensor& x : xs) {
    require(
        x.is_cpu() == cpu && x.get_device_index() == index, op, " got tensors on several devices: call it once for each.");
  }
}

}  // namespace niwaki

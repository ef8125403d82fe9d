// What the norms share on both devices: the channel view of a tensor, and the checks that need no data.
#pragma once

#include "common.h"

namespace niwaki {

// A tensor as dense memory [outer, channels, inner]. What lies before and after the channel may be in any
// order of dimensions: enough for a reduction that does not care about order.
struct ChannelView {
  Tensor tensor;
  int64_t outer;
  int64_t channels;
  int64_t inner;
};

// Views `x` around dimension `dim` (0 <= dim < x.dim()); copies only when the memory is not dense.
inline ChannelView channel_view(const Tensor& x, int64_t dim) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  const int64_t channels = sizes[dim];
  if (x.numel() == 0) return {x, 0, channels, 0};

  std::vector<int64_t> order;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (sizes[d] != 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] > strides[b]; });

  int64_t expected = 1;  // stride of a dense dimension, from the innermost outwards
  int64_t inner = 1;
  bool dense = true;
  bool channel_met = channels == 1;
  for (auto d = order.rbegin(); d != order.rend() && dense; ++d) {
    dense = strides[*d] == expected;
    expected *= sizes[*d];
    channel_met = channel_met || *d == dim;
    if (!channel_met) inner *= sizes[*d];
  }
  if (dense && channels == 1) return {x, 1, 1, x.numel()};
  if (dense) return {x, x.numel() / (channels * inner), channels, inner};
  return {
      torch::stable::contiguous(x),
      product(sizes.data(), dim),
      channels,
      product(sizes.data() + dim + 1, x.dim() - dim - 1)};
}

// The checks of filter_norm that need no data; returns `dim` counted from the front.
inline int64_t check_filter_norm(const Tensor& x, int64_t p, int64_t dim) {
  require(p == 1 || p == 2, "filter_norm computes the norms p = 1 and p = 2, got p = ", p, ".");
  require<std::out_of_range>(
      dim >= -x.dim() && dim < x.dim(), "filter_norm got dim = ", dim, " for a tensor of ", x.dim(),
      " dimensions: pass a dim between ", -x.dim(), " and ", x.dim() - 1, ".");
  return dim < 0 ? dim + x.dim() : dim;
}

inline ScalarType norm_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

[[noreturn]] inline void throw_unsupported_norm(ScalarType dtype) {
  std::ostringstream sentence;
  sentence << "filter_norm got a tensor of " << torch::headeronly::toString(dtype)
           << ": convert it to float32, float64, float16 or bfloat16.";
  throw std::runtime_error(sentence.str());
}

}  // namespace niwaki

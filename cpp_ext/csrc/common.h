// What every kernel shares: errors, the channel view of a tensor, and the CUDA guard, stream and launch check.
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

// The index that channel_slice gathers along one dimension: the values, or the identity when none is given.
struct Keep {
  std::optional<Tensor> tensor;  // holds the memory
  const int64_t* values;         // nullptr: every channel, in order
  int64_t count;
  int64_t size;  // how many channels there are to choose from
};

inline Keep keep_of(const Tensor& x, const std::optional<Tensor>& keep, int64_t dim) {
  require(
      dim < x.dim() || !keep.has_value(), "channel_slice got keep", dim, " for a tensor of ", x.dim(),
      " dimensions: pass keep", dim, " = None.");
  const int64_t size = dim < x.dim() ? x.size(dim) : 1;
  if (!keep.has_value()) return {std::nullopt, nullptr, size, size};
  require(
      keep->scalar_type() == ScalarType::Long && keep->dim() == 1, "channel_slice got a keep", dim, " of ",
      keep->dim(), " dimensions that is not a 1-D int64 tensor: convert it with .long().flatten().");
  require(
      keep->get_device_index() == x.get_device_index() && keep->is_cpu() == x.is_cpu(), "channel_slice got keep",
      dim, " on another device than x: move it with .to(x.device).");
  const Tensor values = torch::stable::contiguous(*keep);
  return {values, values.const_data_ptr<int64_t>(), values.numel(), size};
}

[[noreturn]] inline void throw_out_of_bounds(int dim, int64_t value, int64_t position, int64_t size) {
  std::ostringstream sentence;
  sentence << "channel_slice got keep" << dim << "[" << position << "] = " << value << " for a dimension of size "
           << size << ": pass indices between 0 and " << size - 1 << ".";
  throw std::out_of_range(sentence.str());
}

// A gather along the first two dimensions, as [rows, columns, block] with blocks of dense elements.
struct SlicePlan {
  Tensor source;
  Tensor result;
  Keep rows;
  Keep columns;
  int64_t row_stride;     // elements between source[i] and source[i + 1]
  int64_t column_stride;  // elements between source[:, j] and source[:, j + 1]
  int64_t block;          // elements that stay together
  int64_t element_bytes;
};

inline SlicePlan plan_slice(const Tensor& x, const std::optional<Tensor>& keep0, const std::optional<Tensor>& keep1) {
  require(x.dim() > 0, "channel_slice got a tensor of 0 dimensions: pass one with channels, of 1 dimension or more.");
  Keep rows = keep_of(x, keep0, 0);
  Keep columns = keep_of(x, keep1, 1);

  bool blocks_dense = true;
  int64_t block = 1;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    blocks_dense = blocks_dense && (x.size(d) == 1 || x.stride(d) == block);
    block *= x.size(d);
  }
  const Tensor source = blocks_dense ? x : torch::stable::contiguous(x);

  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape[0] = rows.count;
  if (x.dim() > 1) shape[1] = columns.count;
  return {
      source,
      torch::stable::new_empty(x, shape),
      rows,
      columns,
      source.stride(0),
      x.dim() > 1 ? source.stride(1) : 0,
      block,
      static_cast<int64_t>(x.element_size())};
}

}  // namespace niwaki

#ifdef __CUDACC__

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

namespace niwaki {

// Makes the tensor's device current and names the stream that PyTorch uses there.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace niwaki

#define NIWAKI_LAUNCH_CHECK() STD_CUDA_KERNEL_LAUNCH_CHECK()

#endif  // __CUDACC__

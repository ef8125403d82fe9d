// What the slices share on both devices: kept indices, and a gather along the first two dimensions.
#pragma once

#include "common.h"

namespace niwaki {

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

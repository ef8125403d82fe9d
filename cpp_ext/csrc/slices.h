// What the slices share on both devices: kept indices, and a gather along the first two dimensions.
#pragma once

#include "common.h"

namespace niwaki {

// The index that a slice gathers along one dimension: the values, or the identity when none is given.
struct Keep {
  std::optional<Tensor> tensor;     // holds the memory
  const int64_t* values = nullptr;  // nullptr: every channel, in order
  int64_t count = 0;
  int64_t size = 0;  // how many channels there are to choose from
};

inline Keep keep_of(const char* op, const Tensor& x, const Tensor* keep, int64_t dim) {
  require(
      dim < x.dim() || keep == nullptr, op, " got keep", dim, " for a tensor of ", x.dim(),
      " dimensions: pass keep", dim, " = None.");
  const int64_t size = dim < static_cast<int64_t>(x.sizes().size()) ? x.sizes()[dim] : 1;
  if (keep == nullptr) return {std::nullopt, nullptr, size, size};
  require(
      keep->scalar_type() == ScalarType::Long && keep->dim() == 1, op, " got a keep", dim, " of ",
      keep->dim(), " dimensions that is not a 1-D int64 tensor: convert it with .long().flatten().");
  require(
      keep->get_device_index() == x.get_device_index() && keep->is_cpu() == x.is_cpu(), op, " got keep",
      dim, " on another device than x: move it with .to(x.device).");
  const Tensor values = keep->is_contiguous() ? *keep : torch::stable::contiguous(*keep);
  return {values, static_cast<const int64_t*>(values.const_data_ptr()), values.numel(), size};
}

[[noreturn]] inline void throw_out_of_bounds(
    const char* op, int64_t dim, int64_t value, int64_t position, int64_t size) {
  std::ostringstream sentence;
  sentence << op << " got keep" << dim << "[" << position << "] = " << value << " for a dimension of size "
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

inline SlicePlan plan_slice(const char* op, const Tensor& x, const Tensor* keep0, const Tensor* keep1) {
  require(x.dim() > 0, op, " got a tensor of 0 dimensions: pass one with channels, of 1 dimension or more.");
  Keep rows = keep_of(op, x, keep0, 0);
  Keep columns = keep_of(op, x, keep1, 1);

  bool blocks_dense = true;
  int64_t block = 1;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  for (int64_t d = static_cast<int64_t>(shape.size()) - 1; d >= 2; --d) {
    blocks_dense = blocks_dense && (shape[d] == 1 || x.strides()[d] == block);
    block *= shape[d];
  }
  Tensor source = blocks_dense ? x : torch::stable::contiguous(x);
  const auto strides = source.strides();
  const int64_t row_stride = strides[0], column_stride = shape.size() > 1 ? strides[1] : 0;
  shape[0] = rows.count;
  if (shape.size() > 1) shape[1] = columns.count;
  SlicePlan plan{
      std::move(source),
      fresh(x, shape),
      std::move(rows),
      std::move(columns),
      row_stride,
      column_stride,
      block,
      static_cast<int64_t>(x.element_size())};
  // Without an index over dense columns a whole row is one block.
  if (columns.values == nullptr && (columns.count == 1 || plan.column_stride == block)) {
    plan.block *= columns.count;
    plan.columns.count = 1;
  }
  return plan;
}

// Plans a whole list; `keep0` and `keep1` are places in `keeps`, or -1 for every channel.
inline std::vector<SlicePlan> plan_slices(
    const std::vector<Tensor>& xs, const std::vector<Tensor>& keeps, const std::vector<int64_t>& keep0,
    const std::vector<int64_t>& keep1) {
  const char* op = "multi_channel_slice";
  require(
      keep0.size() == xs.size() && keep1.size() == xs.size(), op, " got ", keep0.size(), " keep0 and ", keep1.size(),
      " keep1 for ", xs.size(), " tensors: pass one of each for a tensor, -1 to keep all.");
  require_one_device(op, xs);
  std::vector<SlicePlan> plans;
  plans.reserve(xs.size());
  for (size_t k = 0; k < xs.size(); ++k) {
    for (const int64_t at : {keep0[k], keep1[k]}) {
      require<std::out_of_range>(
          at >= -1 && at < static_cast<int64_t>(keeps.size()), op, " got the number ", at, " of an index, there are ",
          keeps.size(), ".");
    }
    plans.push_back(plan_slice(
        op, xs[k], keep0[k] < 0 ? nullptr : &keeps[keep0[k]], keep1[k] < 0 ? nullptr : &keeps[keep1[k]]));
  }
  return plans;
}

// A tensor whose masked channels are to be filled, as memory [outer, channels, inner].
struct FillPlan {
  Tensor tensor, mask;
  int64_t outer = 1, channels = 1, inner = 1, element_bytes = 1;
};

// Plans a whole list; tensor k is masked along dims[k] by masks[which[k]], a bool for each channel.
inline std::vector<FillPlan> plan_fills(
    const std::vector<Tensor>& xs, const std::vector<int64_t>& dims, const std::vector<Tensor>& masks,
    const std::vector<int64_t>& which) {
  const char* op = "masked_fill_channels";
  require(
      dims.size() == xs.size() && which.size() == xs.size(), op, " got ", dims.size(), " dims and ", which.size(),
      " mask numbers for ", xs.size(), " tensors: pass one of each for a tensor.");
  require_one_device(op, xs);
  std::vector<FillPlan> plans;
  for (size_t k = 0; k < xs.size(); ++k) {
    const Tensor& x = xs[k];
    const int64_t dim = dims[k];
    require<std::out_of_range>(
        dim >= 0 && dim < x.dim() && which[k] >= 0 && which[k] < static_cast<int64_t>(masks.size()), op,
        " got dim = ", dim, " for a tensor of ", x.dim(), " dimensions and mask number ", which[k], " of ",
        masks.size(), ".");
    const Tensor mask = torch::stable::contiguous(masks[which[k]]);
    require(
        mask.scalar_type() == ScalarType::Bool && mask.dim() == 1 && mask.numel() == x.size(dim), op, " got a mask of ",
        mask.numel(), " entries for a dimension of size ", x.size(dim), ": pass a 1-D bool tensor with one for each.");
    require(
        mask.is_cpu() == x.is_cpu() && mask.get_device_index() == x.get_device_index(), op,
        " got a mask on another device than its tensor: move it with .to(x.device).");
    FillPlan plan{x, mask, 1, x.size(dim), 1, static_cast<int64_t>(x.element_size())};
    bool dense, met = false;
    const auto order = memory_order(x, dense);
    require(
        dense, op, " got tensor ", k, " whose memory is not dense: pass a whole tensor rather than a part of one.");
    for (auto d = order.rbegin(); d != order.rend(); ++d) {
      if (*d == dim) {
        met = true;
      } else {
        (met ? plan.outer : plan.inner) *= x.size(*d);
      }
    }
    plans.push_back(std::move(plan));
  }
  return plans;
}

}  // namespace niwaki

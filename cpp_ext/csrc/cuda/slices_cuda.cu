// Slices and fills on CUDA: one launch for a whole list. An index out of bounds stops the kernel (as PyTorch's own
// indexing does) before anything is read through it, so that nothing has to wait for a check.
#include "../slices.h"
#include "device.h"

#include <cstdio>

namespace niwaki {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kTile = 4096;  // words that a block copies at once

struct SliceEntry {
  const void* from;
  void* to;
  const int64_t *rows, *columns;        // indices, or null for all
  int64_t row_count, row_size, column_count, column_size;
  int64_t row_stride, column_stride, block;  // in words
  int64_t tile_rows;                    // rows in a tile; 1 where a row has several tiles
  int word;                             // bytes: 1, 2, 4, 8, 16
  __host__ __device__ int64_t width() const { return column_count * block; }
  __host__ __device__ int64_t tiles_across() const { return (width() + kTile - 1) / kTile; }
  __host__ __device__ int64_t tiles() const { return (row_count + tile_rows - 1) / tile_rows * tiles_across(); }
};

__device__ int64_t checked(const int64_t* index, int64_t i, int64_t size, int dim) {
  if (index == nullptr) return i;
  const int64_t value = index[i];
  if (value < 0 || value >= size) {
    printf(
        "niwaki: a slice got keep%d[%lld] = %lld for a dimension of size %lld\n", dim, static_cast<long long>(i),
        static_cast<long long>(value), static_cast<long long>(size));
    __trap();
  }
  return value;
}

template <class Word>
__device__ void copy_tile(const SliceEntry& e, int64_t tile) {
  const int64_t across = e.tiles_across();
  const int64_t first_row = tile / across * e.tile_rows, first = tile % across * kTile;
  const auto rows = static_cast<uint32_t>(min(e.tile_rows, e.row_count - first_row));
  const auto width = static_cast<uint32_t>(min(kTile, e.width() - first));
  const Word* from = static_cast<const Word*>(e.from);
  Word* to = static_cast<Word*>(e.to) + first_row * e.width() + first;
  for (uint32_t n = threadIdx.x; n < rows * width; n += kThreads) {
    const uint32_t i = n / width, place = n - i * width;
    int64_t column, inside;
    if (e.width() <= INT32_MAX) {  // the faster division
      const auto at = static_cast<uint32_t>(first) + place, block = static_cast<uint32_t>(e.block);
      column = at / block, inside = at % block;
    } else {
      column = (first + place) / e.block, inside = (first + place) % e.block;
    }
    const int64_t row = checked(e.rows, first_row + i, e.row_size, 0);
    column = checked(e.columns, column, e.column_size, 1);
    to[i * e.width() + place] = from[row * e.row_stride + column * e.column_stride + inside];
  }
}

__global__ void __launch_bounds__(kThreads) slices_kernel(const __grid_constant__ Table<SliceEntry> table) {
  for (int64_t t = blockIdx.x; t < table.tiles; t += gridDim.x) {
    const int k = table.find(t);
    const SliceEntry& e = table.entries[k];
    const int64_t tile = t - table.begins[k];
    switch (e.word) {
      case 1: copy_tile<uint8_t>(e, tile); break;
      case 2: copy_tile<uint16_t>(e, tile); break;
      case 4: copy_tile<uint32_t>(e, tile); break;
      case 8: copy_tile<uint2>(e, tile); break;
      default: copy_tile<uint4>(e, tile);
    }
  }
}

// The widest words that blocks, strides and addresses are multiples of.
SliceEntry entry_of(const SlicePlan& plan) {
  const auto from = reinterpret_cast<uintptr_t>(plan.source.const_data_ptr());
  const auto to = reinterpret_cast<uintptr_t>(plan.result.const_data_ptr());
  const int64_t bytes = plan.element_bytes;
  require(
      bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16, "a slice got elements of ", bytes,
      " bytes: convert them to 1, 2, 4, 8 or 16.");
  int64_t word = 16;
  while (word > bytes &&
         (from | to | static_cast<uintptr_t>(plan.block * bytes) | static_cast<uintptr_t>(plan.row_stride * bytes) |
          static_cast<uintptr_t>(plan.column_stride * bytes)) % word != 0) {
    word /= 2;
  }
  SliceEntry e{};
  e.from = plan.source.const_data_ptr(), e.to = const_cast<void*>(plan.result.const_data_ptr());
  e.rows = plan.rows.values, e.columns = plan.columns.values;
  e.row_count = plan.rows.count, e.row_size = plan.rows.size;
  e.column_count = plan.columns.count, e.column_size = plan.columns.size;
  e.row_stride = plan.row_stride * bytes / word, e.column_stride = plan.column_stride * bytes / word;
  e.block = plan.block * bytes / word;
  e.word = static_cast<int>(word);
  e.tile_rows = std::max<int64_t>(1, kTile / std::max<int64_t>(1, e.width()));
  return e;
}

void run(const std::vector<SlicePlan>& plans) {
  const OnDevice device(plans[0].source);
  Table<SliceEntry> table;
  for (size_t k = 0; k < plans.size(); ++k) {
    if (plans[k].result.numel() > 0) {
      const SliceEntry e = entry_of(plans[k]);
      table.add(e, e.tiles());
    }
    if (table.count == Table<SliceEntry>::kCapacity || (k + 1 == plans.size() && table.count > 0)) {
      const unsigned blocks = grid_of(slices_kernel, kThreads, table.tiles, plans[0].source.get_device_index());
      slices_kernel<<<blocks, kThreads, 0, device.stream()>>>(table);
      NIWAKI_LAUNCH_CHECK();
      table.count = 0, table.tiles = 0;
    }
  }
}

Tensor channel_slice(const Tensor& x, std::optional<Tensor> keep0, std::optional<Tensor> keep1) {
  require(x.is_cuda(), "channel_slice got keep0 or keep1 on another device than x: move them with .to(x.device).");
  const OnDevice device(x);
  const std::vector<SlicePlan> plans{plan_slice(
      "channel_slice", x, keep0.has_value() ? &*keep0 : nullptr, keep1.has_value() ? &*keep1 : nullptr)};
  run(plans);
  return plans[0].result;
}

std::vector<Tensor> multi_channel_slice(
    const std::vector<Tensor>& xs, const std::vector<Tensor>& keeps, const std::vector<int64_t>& keep0,
    const std::vector<int64_t>& keep1) {
  require(
      !xs.empty() && xs[0].is_cuda(),
      "multi_channel_slice got an index on another device than its tensor: move it with .to(x.device).");
  const OnDevice device(xs[0]);
  const auto plans = plan_slices(xs, keeps, keep0, keep1);
  run(plans);
  std::vector<Tensor> results;
  for (const SlicePlan& plan : plans) results.push_back(plan.result);
  return results;
}

struct FillEntry {
  void* x;
  const bool* mask;
  int64_t channels, inner, total;
  int bytes;
};

template <class Word>
__device__ void fill_tile(const FillEntry& e, int64_t tile) {
  const int64_t first = tile * kTile, end = min(e.total, first + kTile);
  Word* x = static_cast<Word*>(e.x);
  for (int64_t n = first + threadIdx.x; n < end; n += kThreads) {
    if (e.mask[n / e.inner % e.channels]) x[n] = Word{};
  }
}

__global__ void __launch_bounds__(kThreads) fills_kernel(const __grid_constant__ Table<FillEntry> table) {
  for (int64_t t = blockIdx.x; t < table.tiles; t += gridDim.x) {
    const int k = table.find(t);
    const FillEntry& e = table.entries[k];
    const int64_t tile = t - table.begins[k];
    switch (e.bytes) {
      case 1: fill_tile<uint8_t>(e, tile); break;
      case 2: fill_tile<uint16_t>(e, tile); break;
      case 4: fill_tile<uint32_t>(e, tile); break;
      case 8: fill_tile<uint2>(e, tile); break;
      default: fill_tile<uint4>(e, tile);
    }
  }
}

void masked_fill_channels(
    const std::vector<Tensor>& xs, const std::vector<int64_t>& dims, const std::vector<Tensor>& masks,
    const std::vector<int64_t>& which) {
  require(
      !xs.empty() && xs[0].is_cuda(),
      "masked_fill_channels got a mask on another device than its tensor: move it with .to(x.device).");
  const OnDevice device(xs[0]);
  auto plans = plan_fills(xs, dims, masks, which);
  Table<FillEntry> table;
  for (size_t k = 0; k < plans.size(); ++k) {
    FillPlan& plan = plans[k];
    const int64_t total = plan.outer * plan.channels * plan.inner;
    if (total > 0) {
      FillEntry e{};
      e.x = plan.tensor.mutable_data_ptr(), e.mask = static_cast<const bool*>(plan.mask.const_data_ptr());
      e.channels = plan.channels, e.inner = plan.inner, e.total = total, e.bytes = static_cast<int>(plan.element_bytes);
      table.add(e, (total + kTile - 1) / kTile);
    }
    if (table.count == Table<FillEntry>::kCapacity || (k + 1 == plans.size() && table.count > 0)) {
      const unsigned blocks = grid_of(fills_kernel, kThreads, table.tiles, xs[0].get_device_index());
      fills_kernel<<<blocks, kThreads, 0, device.stream()>>>(table);
      NIWAKI_LAUNCH_CHECK();
      table.count = 0, table.tiles = 0;
    }
  }
}

}  // namespace
}  // namespace niwaki

STABLE_TORCH_LIBRARY_IMPL(niwaki, CUDA, m) {
  m.impl("channel_slice", TORCH_BOX(&niwaki::channel_slice));
  m.impl("multi_channel_slice", TORCH_BOX(&niwaki::multi_channel_slice));
  m.impl("masked_fill_channels", TORCH_BOX(&niwaki::masked_fill_channels));
}

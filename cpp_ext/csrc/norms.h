// What the norms share on both devices: tensors seen as matrices, and the checks that need no data.
#pragma once

#include "common.h"

#include <cmath>
#include <limits>

namespace niwaki {

enum class Norm : int { one, two, two_squared, infinity };

inline bool is_squares(Norm norm) { return norm == Norm::two || norm == Norm::two_squared; }

inline Norm norm_of(double p, bool squared) {
  require(
      p == 1 || p == 2 || p == std::numeric_limits<double>::infinity(), "a norm is of p = 1, 2 or infinity, got p = ",
      p, ".");
  require(!squared || p == 2, "only the norm p = 2 can be squared, got p = ", p, ".");
  if (p == 1) return Norm::one;
  if (p == 2) return squared ? Norm::two_squared : Norm::two;
  return Norm::infinity;
}

// Dense memory as a matrix of `groups * rows` rows and `repeats * columns * inner` columns, or a part of that. Channels
// of one kept dimension are the rows (row sums, over all groups), those of the other the columns (column sums).
// What lies before and after a channel may be in any order of dimensions.
struct Matrix {
  Tensor tensor;
  ScalarType dtype = ScalarType::Float;
  int64_t groups = 0;
  int64_t rows = 1;
  int64_t repeats = 1;
  int64_t columns = 1;
  int64_t inner = 1;
  int row_dim = -1;     // the tensor's dimension that the rows are, or -1
  int column_dim = -1;  // likewise the columns
  int64_t width() const { return repeats * columns * inner; }
  int64_t height() const { return groups * rows; }
};

constexpr int64_t kShortRow = 32;  // a single kept dimension with less behind it is summed as columns

// Views `x` around dimensions `a` and `b` (0 <= a, b < x.dim(), or b = -1 for one); copies only where memory is not dense.
inline Matrix matrix_view(const Tensor& x, int a, int b) {
  Matrix m;
  m.tensor = x;
  m.dtype = x.scalar_type();
  const auto sizes = x.sizes();
  if (std::find(sizes.begin(), sizes.end(), 0) == sizes.end()) {
    bool dense;
    std::vector<int64_t> order = memory_order(x, dense);
    if (!dense) {
      m.tensor = torch::stable::contiguous(x);
      order = memory_order(m.tensor, dense);
    }
    int64_t before = 1, between = 1, behind = 1;
    int first = -1, second = -1;
    for (const int64_t d : order) {
      if (d == a || d == b) {
        (first < 0 ? first : second) = static_cast<int>(d);
      } else {
        (first < 0 ? before : second < 0 ? between : behind) *= sizes[d];
      }
    }
    if (b < 0 && between < kShortRow && before > 1) {
      m.groups = before, m.columns = sizes[a], m.inner = between, m.column_dim = a;
    } else if (b < 0) {
      m.groups = before, m.rows = sizes[a], m.inner = between, m.row_dim = a;
    } else {
      m.groups = before, m.rows = sizes[first], m.repeats = between, m.columns = sizes[second], m.inner = behind;
      m.row_dim = first, m.column_dim = second;
    }
    return m;
  }
  m.row_dim = a, m.rows = sizes[a];
  if (b >= 0) m.column_dim = b, m.columns = sizes[b];
  return m;
}

// `dim` counted from the front.
inline int check_dim(const char* op, const Tensor& x, int64_t dim) {
  const int64_t dims = x.dim();
  require<std::out_of_range>(
      dim >= -dims && dim < dims, op, " got dim = ", dim, " for a tensor of ", dims, " dimensions: pass a dim between ",
      -dims, " and ", dims - 1, ".");
  return static_cast<int>(dim < 0 ? dim + dims : dim);
}

inline ScalarType norm_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_norm_dtype(const char* op, const Tensor& x) {
  const ScalarType t = x.scalar_type();
  require(
      t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::Half || t == ScalarType::BFloat16, op,
      " got a tensor of ", torch::headeronly::toString(t), ": convert it to float32, float64, float16 or bfloat16.");
}

// One of multi_filter_norm: which tensor, which dimension, and how many channels it is to have, or -1.
struct Slot {
  int64_t tensor, dim, channels;
};

// A row of int64 for each slot, on the CPU for either device.
inline std::vector<Slot> slots_of(const char* op, const Tensor& table) {
  require(
      table.is_cpu() && table.scalar_type() == ScalarType::Long && table.dim() == 2 && table.size(1) == 3 &&
          table.is_contiguous(),
      op, " takes its slots as a contiguous int64 tensor [slots, 3] on the CPU.");
  const auto* first = reinterpret_cast<const Slot*>(table.const_data_ptr());
  return {first, first + table.size(0)};
}

// Where a matrix's channels are in the flat result. Two slots of one tensor share a matrix, and so one read.
struct NormJob {
  Matrix matrix;
  int64_t row_at = -1;     // the first row's place among all slots' channels, or -1
  int64_t column_at = -1;  // likewise
};

inline std::vector<NormJob> norm_jobs(
    const char* op, const std::vector<Tensor>& xs, const std::vector<Slot>& slots, int64_t& channels) {
  require_one_device(op, xs);
  std::vector<NormJob> jobs;
  jobs.reserve(slots.size());
  channels = 0;
  for (size_t s = 0; s < slots.size();) {
    require<std::out_of_range>(
        slots[s].tensor >= 0 && slots[s].tensor < static_cast<int64_t>(xs.size()), op, " got tensor number ",
        slots[s].tensor, " of ", xs.size(), ".");
    const Tensor& x = xs[slots[s].tensor];
    check_norm_dtype(op, x);
    const int a = check_dim(op, x, slots[s].dim);
    int b = -1;
    if (s + 1 < slots.size() && slots[s + 1].tensor == slots[s].tensor) {
      b = check_dim(op, x, slots[s + 1].dim);
      if (b == a) b = -1;
    }
    NormJob job;
    job.matrix = matrix_view(x, a, b);
    for (const int d : {a, b}) {
      if (d < 0) continue;
      const int64_t size = x.size(d);
      require(
          slots[s].channels < 0 || slots[s].channels == size, op, " got ", slots[s].channels, " units for the ", size,
          " channels of slot ", s, ".");
      (job.matrix.row_dim == d ? job.row_at : job.column_at) = channels;
      channels += size;
      ++s;
    }
    jobs.push_back(std::move(job));
  }
  return jobs;
}

// Which places of the flat result make up each unit: units u = order[offsets[u] : offsets[u + 1]].
struct Scatter {
  Tensor order, offsets;
  int64_t units;
};

inline Scatter check_scatter(const Tensor& order, const Tensor& offsets, int64_t channels, const Tensor* like) {
  const char* op = "multi_filter_norm";
  require(
      order.scalar_type() == ScalarType::Long && order.dim() == 1 && offsets.scalar_type() == ScalarType::Long &&
          offsets.dim() == 1 && offsets.numel() > 0,
      op, " takes order and offsets as 1-D int64 tensors, offsets with one entry more than there are units.");
  require(
      order.numel() == channels, op, " got an order of ", order.numel(), " places for ", channels, " channels.");
  for (const Tensor* t : {&order, &offsets}) {
    require(
        like == nullptr || (t->is_cpu() == like->is_cpu() && t->get_device_index() == like->get_device_index()), op,
        " got order or offsets on another device than the tensors: move them there.");
  }
  return {torch::stable::contiguous(order), torch::stable::contiguous(offsets), offsets.numel() - 1};
}

}  // namespace niwaki

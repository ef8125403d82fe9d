// niwaki::channel_slice: schema and CPU.
#include "slices.h"

#include <cstring>

namespace niwaki {
namespace {

constexpr int64_t kGrainBytes = 128 * 1024;  // bytes that are worth a thread

void check_bounds(const Keep& keep, int dim) {
  if (keep.values == nullptr) return;
  for (int64_t i = 0; i < keep.count; ++i) {
    if (keep.values[i] < 0 || keep.values[i] >= keep.size) throw_out_of_bounds(dim, keep.values[i], i, keep.size);
  }
}

// Copies blocks of `Bytes` bytes (of `bytes` bytes when Bytes is 0) to adjoining places: a size known to the
// compiler turns memcpy into moves.
template <int64_t Bytes>
void gather(char* to, const char* from, const int64_t* index, int64_t count, int64_t stride, int64_t bytes) {
  const int64_t size = Bytes > 0 ? Bytes : bytes;
  for (int64_t j = 0; j < count; ++j) {
    std::memcpy(to + j * size, from + (index == nullptr ? j : index[j]) * stride, size);
  }
}

using Gather = void (*)(char*, const char*, const int64_t*, int64_t, int64_t, int64_t);

Gather gather_for(int64_t bytes) {
  switch (bytes) {
    case 1: return gather<1>;
    case 2: return gather<2>;
    case 4: return gather<4>;
    case 8: return gather<8>;
    case 18: return gather<18>;  // 3 x 3 in 16 bits
    case 36: return gather<36>;  // 3 x 3 in float32
    default: return gather<0>;
  }
}

Tensor channel_slice(const Tensor& x, std::optional<Tensor> keep0, std::optional<Tensor> keep1) {
  SlicePlan plan = plan_slice(x, keep0, keep1);
  check_bounds(plan.rows, 0);
  check_bounds(plan.columns, 1);
  if (plan.result.numel() == 0) return plan.result;

  // Without an index over dense columns a whole row is one block.
  const bool whole_rows =
      plan.columns.values == nullptr && (plan.columns.count == 1 || plan.column_stride == plan.block);
  const int64_t count = whole_rows ? 1 : plan.columns.count;
  const int64_t bytes = plan.element_bytes * plan.block * (whole_rows ? plan.columns.count : 1);
  const int64_t column_bytes = plan.element_bytes * plan.column_stride;
  const int64_t row_bytes = plan.element_bytes * plan.row_stride;
  const Gather copy = gather_for(bytes);
  const char* from = static_cast<const char*>(plan.source.const_data_ptr());
  char* to = static_cast<char*>(plan.result.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / (count * bytes));
  torch::stable::parallel_for(0, plan.rows.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = plan.rows.values == nullptr ? i : plan.rows.values[i];
      copy(to + i * count * bytes, from + row * row_bytes, plan.columns.values, count, column_bytes, bytes);
    }
  });
  return plan.result;
}

}  // namespace
}  // namespace niwaki

STABLE_TORCH_LIBRARY_FRAGMENT(niwaki, m) {
  m.def("channel_slice(Tensor x, Tensor? keep0, Tensor? keep1) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(niwaki, CPU, m) {
  m.impl("channel_slice", TORCH_BOX(&niwaki::channel_slice));
}

// Slices and fills on the CPU: schemas, and the division of a whole list's work.
#include "../slices.h"
#include "loops.h"
#include "work.h"

#include <cstring>
#include <map>

#if defined(__linux__)
#include <sys/mman.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; refused by older ones
#endif
#endif

namespace niwaki {
namespace {

constexpr int64_t kPieceBytes = 128 * 1024;
constexpr int64_t kHugePage = 2 * 1024 * 1024;
constexpr int64_t kAhead = 2048;  // bytes of rows to come that are asked for early
constexpr int64_t kPage = 4096;  // where pages are larger, the advice is refused

// Which of a dimension's channels stay, where the kept ones rise: a bit each.
using Bits = std::vector<uint8_t>;

// Checks an index once for each size that it meets; the bits are empty unless the index rises.
class Indices {
 public:
  const Bits* check(const char* op, const Keep& keep, int64_t dim) {
    if (keep.values == nullptr) return nullptr;
    const auto [found, fresh] = known_.try_emplace({keep.values, keep.size});
    if (fresh) {
      bool rising = true;
      for (int64_t i = 0; i < keep.count; ++i) {
        const int64_t value = keep.values[i];
        if (value < 0 || value >= keep.size) throw_out_of_bounds(op, dim, value, i, keep.size);
        rising = rising && (i == 0 || value > keep.values[i - 1]);
      }
      if (rising) {
        found->second.resize(keep.size / 8 + 2);
        for (int64_t i = 0; i < keep.count;) {
          const int64_t byte = keep.values[i] / 8;
          int bits = 0;
          for (; i < keep.count && keep.values[i] / 8 == byte; ++i) bits |= 1 << (keep.values[i] & 7);
          found->second[byte] = static_cast<uint8_t>(bits);
        }
      }
    }
    return found->second.empty() ? nullptr : &found->second;
  }

 private:
  std::map<std::pair<const int64_t*, int64_t>, Bits> known_;
};

// Copies blocks of `Bytes` bytes (of `bytes` bytes when Bytes is 0) to adjoining places: a size known to the
// compiler turns memcpy into moves. Asks for the same blocks of a row to come, `next`.
template <int64_t Bytes>
void gather(
    char* to, const char* from, const char* next, const int64_t* index, int64_t count, int64_t stride, int64_t bytes) {
  const int64_t size = Bytes > 0 ? Bytes : bytes;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t at = (index == nullptr ? j : index[j]) * stride;
    __builtin_prefetch(next + at);
    std::memcpy(to + j * size, from + at, size);
  }
}

using Gather = void (*)(char*, const char*, const char*, const int64_t*, int64_t, int64_t, int64_t);

Gather gather_for(int64_t bytes) {
  switch (bytes) {
    case 1: return gather<1>;
    case 2: return gather<2>;
    case 4: return gather<4>;
    case 8: return gather<8>;
    case 16: return gather<16>;
    case 18: return gather<18>;  // 3 x 3 in 16 bits
    case 36: return gather<36>;  // 3 x 3 in float32
    case 50: return gather<50>;  // 5 x 5
    case 98: return gather<98>;  // 7 x 7
    case 100: return gather<100>;
    case 196: return gather<196>;
    default: return gather<0>;
  }
}

// Fresh memory comes page by page, each a fault that costs more than the copy: ask for large pages.
void ask_for_large_pages([[maybe_unused]] const Tensor& result, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto begin = reinterpret_cast<uintptr_t>(result.const_data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (begin + bytes) / kHugePage * kHugePage;
  // Advice that is refused changes nothing.
  if (end > first) (void)madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

// Gets the pages of [to, to + bytes) in one call of the kernel rather than by a fault each.
void populate([[maybe_unused]] char* to, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  const uintptr_t begin = reinterpret_cast<uintptr_t>(to) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(to) + bytes;
  if (bytes >= 4 * kPage) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_WRITE);
#endif
}

void run(const char* op, const std::vector<SlicePlan>& plans) {
  struct Piece {
    const SlicePlan* plan;
    const Bits* bits;
    int64_t first, count;  // rows of the result
  };
  Indices indices;
  std::vector<Piece> pieces;
  std::vector<int64_t> work;
  for (const SlicePlan& plan : plans) {
    indices.check(op, plan.rows, 0);
    const Bits* bits = indices.check(op, plan.columns, 1);
    const int64_t row_bytes = plan.columns.count * plan.block * plan.element_bytes;
    if (plan.rows.count == 0 || row_bytes == 0) continue;
    ask_for_large_pages(plan.result, plan.rows.count * row_bytes);
    const bool packs = plan.columns.values != nullptr && plan.block == 1 && plan.column_stride == 1 &&
        (plan.element_bytes == 2 || plan.element_bytes == 4);
    const int64_t rows = std::max<int64_t>(1, kPieceBytes / row_bytes);
    for (int64_t first = 0; first < plan.rows.count; first += rows) {
      pieces.push_back({&plan, packs ? bits : nullptr, first, std::min(rows, plan.rows.count - first)});
      work.push_back(pieces.back().count * row_bytes);
    }
  }
  const Loops& best = loops();
  for_each_piece(work, kPieceBytes, [&](int64_t k) {
    const Piece& piece = pieces[k];
    const SlicePlan& plan = *piece.plan;
    const int64_t bytes = plan.block * plan.element_bytes;
    const int64_t row_bytes = plan.columns.count * bytes;
    const Gather copy = gather_for(bytes);
    const Compress compress = plan.element_bytes == 2 ? best.compress2 : best.compress4;
    const char* from = static_cast<const char*>(plan.source.const_data_ptr());
    char* to = static_cast<char*>(plan.result.mutable_data_ptr());
    populate(to + piece.first * row_bytes, piece.count * row_bytes);
    const auto source_of = [&](int64_t i) {
      return from + (plan.rows.values == nullptr ? i : plan.rows.values[i]) * plan.row_stride * plan.element_bytes;
    };
    const int64_t ahead = 1 + kAhead / (plan.columns.size * bytes);
    for (int64_t i = piece.first; i < piece.first + piece.count; ++i) {
      const char* source = source_of(i);
      const char* next = source_of(std::min(i + ahead, plan.rows.count - 1));
      if (piece.bits != nullptr) {
        compress(to + i * row_bytes, source, next, piece.bits->data(), plan.columns.size, plan.columns.count);
      } else {
        copy(
            to + i * row_bytes, source, next, plan.columns.values, plan.columns.count,
            plan.column_stride * plan.element_bytes, bytes);
      }
    }
  });
}

Tensor channel_slice(const Tensor& x, std::optional<Tensor> keep0, std::optional<Tensor> keep1) {
  const std::vector<SlicePlan> plans{plan_slice(
      "channel_slice", x, keep0.has_value() ? &*keep0 : nullptr, keep1.has_value() ? &*keep1 : nullptr)};
  run("channel_slice", plans);
  return plans[0].result;
}

std::vector<Tensor> multi_channel_slice(
    const std::vector<Tensor>& xs, const std::vector<Tensor>& keeps, const std::vector<int64_t>& keep0,
    const std::vector<int64_t>& keep1) {
  const auto plans = plan_slices(xs, keeps, keep0, keep1);
  run("multi_channel_slice", plans);
  std::vector<Tensor> results;
  for (const SlicePlan& plan : plans) results.push_back(plan.result);
  return results;
}

// Zero is all bits 0 in every dtype.
void masked_fill_channels(
    const std::vector<Tensor>& xs, const std::vector<int64_t>& dims, const std::vector<Tensor>& masks,
    const std::vector<int64_t>& which) {
  const auto plans = plan_fills(xs, dims, masks, which);
  std::vector<int64_t> work;
  for (const FillPlan& plan : plans) work.push_back(plan.outer * plan.channels * plan.inner);
  for_each_piece(work, kPieceBytes, [&](int64_t k) {
    const FillPlan& plan = plans[k];
    if (work[k] == 0) return;
    char* x = static_cast<char*>(plan.tensor.mutable_data_ptr());
    const auto* mask = static_cast<const uint8_t*>(plan.mask.const_data_ptr());
    const int64_t bytes = plan.inner * plan.element_bytes;
    for (int64_t o = 0; o < plan.outer; ++o) {
      for (int64_t c = 0; c < plan.channels; ++c) {
        if (mask[c] != 0) std::memset(x + (o * plan.channels + c) * bytes, 0, bytes);
      }
    }
  });
}

}  // namespace
}  // namespace niwaki

STABLE_TORCH_LIBRARY_FRAGMENT(niwaki, m) {
  m.def("channel_slice(Tensor x, Tensor? keep0, Tensor? keep1) -> Tensor");
  m.def("multi_channel_slice(Tensor[] xs, Tensor[] keeps, int[] keep0, int[] keep1) -> Tensor[]");
  m.def("masked_fill_channels(Tensor(a!)[] xs, int[] dims, Tensor[] masks, int[] which) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(niwaki, CPU, m) {
  m.impl("channel_slice", TORCH_BOX(&niwaki::channel_slice));
  m.impl("multi_channel_slice", TORCH_BOX(&niwaki::multi_channel_slice));
  m.impl("masked_fill_channels", TORCH_BOX(&niwaki::masked_fill_channels));
}

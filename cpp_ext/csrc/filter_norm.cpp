// niwaki::filter_norm: schema and CPU. The order of a sum depends on the shape alone, not on threads.
#include "norms.h"

#include <cmath>
#include <cstring>
#include <type_traits>

// Besides the portable build, GCC on x86-64 Linux compiles the hot loops for AVX2 and AVX-512, chosen when loaded.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define NIWAKI_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define NIWAKI_CLONES
#endif
#define NIWAKI_INLINE inline __attribute__((always_inline))

namespace niwaki {
namespace {

constexpr int64_t kLanes = 32;         // independent sums in a row: hides the latency of an addition
constexpr int64_t kBlock = 1024;       // elements summed in float before double takes over
constexpr int64_t kTile = 512;         // columns summed at once: their sums stay in the L1 cache
constexpr int64_t kShortRow = 32;      // rows shorter than this are summed as columns
constexpr int64_t kGrain = 32 * 1024;  // elements that are worth a thread

NIWAKI_INLINE float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
NIWAKI_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct Half { uint16_t bits; };
struct BFloat16 { uint16_t bits; };

// |x|. The 16-bit ones are masks and shifts without branches, so that the compiler vectorises them.
NIWAKI_INLINE double magnitude(double x) { return std::fabs(x); }
NIWAKI_INLINE float magnitude(float x) { return std::fabs(x); }
NIWAKI_INLINE float magnitude(BFloat16 x) { return as_float(static_cast<uint32_t>(x.bits & 0x7fff) << 16); }
NIWAKI_INLINE float magnitude(Half x) {
  const uint32_t bits = x.bits & 0x7fff;
  const uint32_t special = 0u - static_cast<uint32_t>(bits >= 0x7c00);    // all ones for infinity and NaN
  const uint32_t subnormal = 0u - static_cast<uint32_t>(bits < 0x0400);   // all ones below the normal numbers
  const uint32_t normal_bits = (bits << 13) + (112u << 23) + (special & (112u << 23));
  const uint32_t small_bits = as_bits(static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-24f);
  return as_float((small_bits & subnormal) | (normal_bits & ~subnormal));
}

template <int P, class Sum, class T>
NIWAKI_INLINE Sum term(T x) {
  const Sum m = magnitude(x);
  return P == 1 ? m : m * m;
}

// The sum over x[0:n] in a fixed order, by kLanes independent sums.
template <int P, class Sum, class T>
NIWAKI_INLINE Sum sum_run(const T* x, int64_t n) {
  Sum lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += term<P, Sum>(x[i + j]);
  }
  for (int64_t j = 0; i + j < n; ++j) lanes[j] += term<P, Sum>(x[i + j]);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  return lanes[0];
}

// The same over any n: float within a block, double between blocks.
template <int P>
NIWAKI_INLINE double sum_blocks(const double* x, int64_t n) {
  return sum_run<P, double>(x, n);
}
template <int P, class T>
NIWAKI_INLINE double sum_blocks(const T* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = std::min(kBlock, n - i);
    float wide[kBlock];  // 16-bit values are widened in a loop of their own, which vectorises better
    const float* values = wide;
    if constexpr (std::is_same_v<T, float>) {
      values = x + i;
    } else {
      for (int64_t j = 0; j < count; ++j) wide[j] = magnitude(x[i + j]);
    }
    const float block = sum_run<P, float>(values, count);
    // Where float may have overflowed or lost small squares, double has not.
    sum += block > 1e-25f && block < 1e37f ? block : sum_run<P, double>(values, count);
  }
  return sum;
}

// sums[c - begin] = the sum over the rows x[o, c, :], each a run of `inner` elements.
template <int P, class T>
NIWAKI_INLINE void sum_rows(const T* x, const ChannelView& v, int64_t begin, int64_t end, double* sums) {
  for (int64_t c = begin; c < end; ++c) {
    double sum = 0;
    for (int64_t o = 0; o < v.outer; ++o) sum += sum_blocks<P>(x + (o * v.channels + c) * v.inner, v.inner);
    sums[c - begin] = sum;
  }
}

// The same for short rows: x[o, :, :] is one run of columns, summed side by side and folded at the end.
template <int P, class T>
NIWAKI_INLINE void sum_columns(const T* x, const ChannelView& v, int64_t begin, int64_t end, double* sums) {
  double tile[kTile];
  const int64_t step = kTile / v.inner;
  for (int64_t first = begin; first < end; first += step) {
    const int64_t count = std::min(step, end - first);
    const int64_t width = count * v.inner;
    std::fill(tile, tile + width, 0.0);
    for (int64_t o = 0; o < v.outer; ++o) {
      const T* row = x + (o * v.channels + first) * v.inner;
      for (int64_t j = 0; j < width; ++j) tile[j] += term<P, double>(row[j]);
    }
    for (int64_t c = 0; c < count; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < v.inner; ++i) sum += tile[c * v.inner + i];
      sums[first - begin + c] = sum;
    }
  }
}

template <int P, class T>
NIWAKI_INLINE void sum_channels(const void* data, const ChannelView& v, int64_t begin, int64_t end, double* sums) {
  const T* x = static_cast<const T*>(data);
  if (v.inner < kShortRow) {
    sum_columns<P>(x, v, begin, end, sums);
  } else {
    sum_rows<P>(x, v, begin, end, sums);
  }
}

// Clones need plain functions, one for each type and norm.
#define NIWAKI_SUM(T, P)                                                                                     \
  NIWAKI_CLONES void sum_##T##_##P(const void* x, const ChannelView& v, int64_t begin, int64_t end, double* sums) { \
    sum_channels<P, T>(x, v, begin, end, sums);                                                              \
  }
NIWAKI_SUM(float, 1)
NIWAKI_SUM(float, 2)
NIWAKI_SUM(double, 1)
NIWAKI_SUM(double, 2)
NIWAKI_SUM(Half, 1)
NIWAKI_SUM(Half, 2)
NIWAKI_SUM(BFloat16, 1)
NIWAKI_SUM(BFloat16, 2)
#undef NIWAKI_SUM

using Sum = void (*)(const void*, const ChannelView&, int64_t, int64_t, double*);

Sum sum_for(ScalarType dtype, int64_t p) {
  switch (dtype) {
    case ScalarType::Float: return p == 1 ? sum_float_1 : sum_float_2;
    case ScalarType::Double: return p == 1 ? sum_double_1 : sum_double_2;
    case ScalarType::Half: return p == 1 ? sum_Half_1 : sum_Half_2;
    case ScalarType::BFloat16: return p == 1 ? sum_BFloat16_1 : sum_BFloat16_2;
    default: throw_unsupported_norm(dtype);
  }
}

template <class Out>
void store(const std::vector<double>& sums, int64_t p, Tensor& result) {
  Out* out = static_cast<Out*>(result.mutable_data_ptr());
  std::transform(sums.begin(), sums.end(), out, [p](double sum) {
    return static_cast<Out>(p == 1 ? sum : std::sqrt(sum));
  });
}

Tensor filter_norm(const Tensor& x, int64_t p, int64_t dim) {
  const Sum sum = sum_for(x.scalar_type(), p);
  const ChannelView view = channel_view(x, check_filter_norm(x, p, dim));
  Tensor result = torch::stable::new_empty(x, {view.channels}, norm_dtype(x));
  std::vector<double> sums(view.channels, 0.0);
  const int64_t per_channel = view.outer * view.inner;
  if (per_channel > 0 && view.channels > 0) {
    const void* data = view.tensor.const_data_ptr();
    // Whole tiles for each thread where columns are summed, or they would read the same cache lines.
    const int64_t least = view.inner < kShortRow ? kTile / view.inner : 1;
    const int64_t grain = std::max(least, kGrain / per_channel);
    torch::stable::parallel_for(0, view.channels, grain, [&](int64_t begin, int64_t end) {
      sum(data, view, begin, end, sums.data() + begin);
    });
  }
  if (norm_dtype(x) == ScalarType::Double) {
    store<double>(sums, p, result);
  } else {
    store<float>(sums, p, result);
  }
  return result;
}

}  // namespace
}  // namespace niwaki

STABLE_TORCH_LIBRARY_FRAGMENT(niwaki, m) {
  m.def("filter_norm(Tensor x, int p, int dim) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(niwaki, CPU, m) {
  m.impl("filter_norm", TORCH_BOX(&niwaki::filter_norm));
}

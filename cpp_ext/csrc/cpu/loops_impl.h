// The loops themselves. Each file that includes this sets NIWAKI_ISA (a namespace) and NIWAKI_WIDTH (doubles in a vector).
// Eight lanes of double, whatever the width, so that each build adds in the same order.
#include "loops.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace niwaki {
namespace NIWAKI_ISA {

#define NIWAKI_INLINE inline __attribute__((always_inline))

constexpr int kWidth = NIWAKI_WIDTH;
constexpr int kLanes = 8;
constexpr int kVectors = kLanes / kWidth;

typedef double Doubles __attribute__((vector_size(8 * kWidth), aligned(8), may_alias));
typedef int64_t Longs __attribute__((vector_size(8 * kWidth), aligned(8), may_alias));
typedef float Floats __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef uint16_t Shorts __attribute__((vector_size(2 * kWidth), aligned(2), may_alias));

template <Element E> struct Storage { typedef uint16_t type; };
template <> struct Storage<Element::f32> { typedef float type; };
template <> struct Storage<Element::f64> { typedef double type; };

// kWidth numbers as doubles; 16-bit ones without branches.
template <Element E>
NIWAKI_INLINE Doubles load(const typename Storage<E>::type* x) {
  if constexpr (E == Element::f64) {
    return *reinterpret_cast<const Doubles*>(x);
  } else if constexpr (E == Element::f32) {
    return __builtin_convertvector(*reinterpret_cast<const Floats*>(x), Doubles);
  } else if constexpr (E == Element::bf16) {
    const Words bits = __builtin_convertvector(*reinterpret_cast<const Shorts*>(x), Words) << 16;
    return __builtin_convertvector(reinterpret_cast<Floats>(bits), Doubles);
  } else {
#if defined(__AVX512F__) && NIWAKI_WIDTH == 8
    return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
#elif defined(__F16C__) && NIWAKI_WIDTH == 4
    return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
#else
    const Words all = __builtin_convertvector(*reinterpret_cast<const Shorts*>(x), Words);
    const Words bits = all & 0x7fff;
    const Words special = static_cast<Words>(bits >= 0x7c00);   // all ones for infinity and NaN
    const Words subnormal = static_cast<Words>(bits < 0x0400);  // all ones below the normal numbers
    const Words normal = (bits << 13) + (112u << 23) + (special & (112u << 23));
    typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
    const Floats small = __builtin_convertvector(reinterpret_cast<Ints>(bits), Floats) * 0x1p-24f;
    const Words chosen = (reinterpret_cast<Words>(small) & subnormal) | (normal & ~subnormal) | ((all & 0x8000) << 16);
    return __builtin_convertvector(reinterpret_cast<Floats>(chosen), Doubles);
#endif
  }
}

NIWAKI_INLINE Doubles magnitude(Doubles x) {
  return reinterpret_cast<Doubles>(reinterpret_cast<Longs>(x) & static_cast<int64_t>(0x7fffffffffffffff));
}

template <Reduce R>
NIWAKI_INLINE Doubles lift(Doubles x) {
  if constexpr (R == Reduce::squares) return x * x;
  return magnitude(x);
}

// A NaN stays once it is met.
template <Reduce R>
NIWAKI_INLINE Doubles combine(Doubles sum, Doubles term) {
  if constexpr (R == Reduce::maximum) {
    const Longs take = (term > sum) | (term != term);
    return reinterpret_cast<Doubles>((reinterpret_cast<Longs>(term) & take) | (reinterpret_cast<Longs>(sum) & ~take));
  } else {
    return sum + term;
  }
}

template <Reduce R>
NIWAKI_INLINE double combine(double sum, double term) {
  if constexpr (R == Reduce::maximum) return term > sum || term != term ? term : sum;
  return sum + term;
}

struct Sum {
  Doubles v[kVectors];
};

template <Reduce R>
NIWAKI_INLINE double fold(const Sum& sum) {
  double lanes[kLanes];
  std::memcpy(lanes, sum.v, sizeof lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lanes[j] = combine<R>(lanes[j], lanes[j + width]);
  }
  return lanes[0];
}

// What is left of a row, in a full set of lanes filled up with zeros, which add nothing.
template <Element E>
NIWAKI_INLINE void load_tail(typename Storage<E>::type* lanes, const typename Storage<E>::type* x, int64_t count) {
  std::memset(lanes, 0, kLanes * sizeof *lanes);
  for (int64_t j = 0; j < count; ++j) lanes[j] = x[j];
}

// Rows alone: one after the other, by four sets of lanes.
template <Element E, Reduce R>
NIWAKI_INLINE void rows_only(const typename Storage<E>::type* x, int64_t height, int64_t width, double* rows) {
  typedef typename Storage<E>::type T;
  for (int64_t r = 0; r < height; ++r, x += width) {
    Sum sums[4] = {};
    int64_t j = 0;
    for (; j + 4 * kLanes <= width; j += 4 * kLanes) {
      for (int s = 0; s < 4; ++s) {
        for (int k = 0; k < kVectors; ++k) {
          sums[s].v[k] = combine<R>(sums[s].v[k], lift<R>(load<E>(x + j + s * kLanes + k * kWidth)));
        }
      }
    }
    for (; j < width; j += kLanes) {
      T lanes[kLanes];
      const T* from = x + j;
      if (width - j < kLanes) load_tail<E>(lanes, from, width - j), from = lanes;
      for (int k = 0; k < kVectors; ++k) sums[0].v[k] = combine<R>(sums[0].v[k], lift<R>(load<E>(from + k * kWidth)));
    }
    for (int k = 0; k < kVectors; ++k) {
      sums[0].v[k] = combine<R>(combine<R>(sums[0].v[k], sums[1].v[k]), combine<R>(sums[2].v[k], sums[3].v[k]));
    }
    rows[r] = fold<R>(sums[0]);
  }
}

// `Rows` rows side by side: each column's sum is loaded and stored once for all of them.
template <Element E, Reduce R, int Rows, bool WithRows>
NIWAKI_INLINE void side_by_side(
    const typename Storage<E>::type* x, int64_t stride, int64_t period, double* rows, double* columns) {
  typedef typename Storage<E>::type T;
  Sum sums[Rows] = {};
  for (int64_t j = 0; j < period; j += kLanes) {
    T lanes[Rows][kLanes];
    double narrow[kLanes];
    const bool tail = period - j < kLanes;
    const T* from[Rows];
    double* into = columns + j;
    for (int r = 0; r < Rows; ++r) from[r] = x + r * stride + j;
    if (__builtin_expect(tail, 0)) {
      for (int r = 0; r < Rows; ++r) load_tail<E>(lanes[r], from[r], period - j), from[r] = lanes[r];
      load_tail<Element::f64>(narrow, into, period - j), into = narrow;
    }
    for (int k = 0; k < kVectors; ++k) {
      Doubles terms[Rows];
      for (int r = 0; r < Rows; ++r) terms[r] = lift<R>(load<E>(from[r] + k * kWidth));
      if constexpr (WithRows) {
        for (int r = 0; r < Rows; ++r) sums[r].v[k] = combine<R>(sums[r].v[k], terms[r]);
      }
      if constexpr (Rows == 4) {
        terms[0] = combine<R>(combine<R>(terms[0], terms[1]), combine<R>(terms[2], terms[3]));
      }
      Doubles* column = reinterpret_cast<Doubles*>(into + k * kWidth);
      *column = combine<R>(*column, terms[0]);
    }
    if (__builtin_expect(tail, 0)) std::memcpy(columns + j, narrow, (period - j) * sizeof(double));
  }
  if constexpr (WithRows) {
    for (int r = 0; r < Rows; ++r) rows[r] = combine<R>(rows[r], fold<R>(sums[r]));
  }
}

template <Element E, Reduce R>
void reduce(const void* data, int64_t height, int64_t repeats, int64_t period, double* rows, double* columns) {
  typedef typename Storage<E>::type T;
  const T* x = static_cast<const T*>(data);
  const int64_t width = repeats * period;
  if (columns == nullptr) return rows_only<E, R>(x, height, width, rows);
  if (rows != nullptr) std::memset(rows, 0, height * sizeof(double));
  int64_t r = 0;
  for (; r + 4 <= height; r += 4) {
    for (int64_t q = 0; q < repeats; ++q) {
      const T* from = x + r * width + q * period;
      if (rows != nullptr) {
        side_by_side<E, R, 4, true>(from, width, period, rows + r, columns);
      } else {
        side_by_side<E, R, 4, false>(from, width, period, nullptr, columns);
      }
    }
  }
  for (; r < height; ++r) {
    for (int64_t q = 0; q < repeats; ++q) {
      const T* from = x + r * width + q * period;
      if (rows != nullptr) {
        side_by_side<E, R, 1, true>(from, width, period, rows + r, columns);
      } else {
        side_by_side<E, R, 1, false>(from, width, period, nullptr, columns);
      }
    }
  }
}

#if NIWAKI_WIDTH > 2
// Shuffles by the mask: the kept elements of 16 bytes to the front. The store may reach past them, but never past
// `kept` elements.
template <int Bytes, int Count>
struct Table {
  uint8_t order[1 << Count][16];
  constexpr Table() : order() {
    for (int mask = 0; mask < 1 << Count; ++mask) {
      int at = 0;
      for (int j = 0; j < Count; ++j) {
        if (mask >> j & 1) {
          for (int b = 0; b < Bytes; ++b) order[mask][at++] = static_cast<uint8_t>(j * Bytes + b);
        }
      }
      for (; at < 16; ++at) order[mask][at] = 0x80;
    }
  }
};
constexpr Table<2, 8> kTable2;
constexpr Table<4, 4> kTable4;

template <class T>
void compress(void* to, const void* from, const uint8_t* masks, int64_t count, int64_t kept) {
  constexpr int64_t step = 16 / sizeof(T);
  const T* x = static_cast<const T*>(from);
  T* out = static_cast<T*>(to);
  T* const end = out + kept;
  int64_t i = 0;
  for (; i + step <= count && out + step <= end; i += step) {
    const unsigned mask = sizeof(T) == 2 ? masks[i / 8] : masks[i / 8] >> (i & 4) & 15;
    const uint8_t* order;
    if constexpr (sizeof(T) == 2) {
      order = kTable2.order[mask];
    } else {
      order = kTable4.order[mask];
    }
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i));
    const __m128i shuffle = _mm_loadu_si128(reinterpret_cast<const __m128i*>(order));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(values, shuffle));
    out += __builtin_popcount(mask);
  }
  for (; out < end; ++i) {
    *out = x[i];
    out += masks[i / 8] >> (i & 7) & 1;
  }
}
#else
template <class T>
void compress(void* to, const void* from, const uint8_t* masks, int64_t, int64_t kept) {
  const T* x = static_cast<const T*>(from);
  T* out = static_cast<T*>(to);
  T* const end = out + kept;
  for (int64_t i = 0; out < end; ++i) {
    *out = x[i];
    out += masks[i / 8] >> (i & 7) & 1;
  }
}
#endif

}  // namespace NIWAKI_ISA

#define NIWAKI_STRING(x) #x
#define NIWAKI_TEXT(x) NIWAKI_STRING(x)
namespace isa = NIWAKI_ISA;
extern const Loops NIWAKI_NAME = {
    NIWAKI_TEXT(NIWAKI_ISA),
    {{isa::reduce<Element::f32, Reduce::sum>, isa::reduce<Element::f32, Reduce::squares>, isa::reduce<Element::f32, Reduce::maximum>},
     {isa::reduce<Element::f64, Reduce::sum>, isa::reduce<Element::f64, Reduce::squares>, isa::reduce<Element::f64, Reduce::maximum>},
     {isa::reduce<Element::f16, Reduce::sum>, isa::reduce<Element::f16, Reduce::squares>, isa::reduce<Element::f16, Reduce::maximum>},
     {isa::reduce<Element::bf16, Reduce::sum>, isa::reduce<Element::bf16, Reduce::squares>, isa::reduce<Element::bf16, Reduce::maximum>}},
    isa::compress<uint16_t>,
    isa::compress<uint32_t>};

}  // namespace niwaki

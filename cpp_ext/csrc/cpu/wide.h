// Sums in double throughout: float64, and whatever float32 cannot hold. Eight lanes of double, whatever the width, so
// that each build adds in the same order. Included by loops_impl.h, once for each instruction set.
namespace niwaki {
namespace NIWAKI_ISA {

constexpr int kLanes = 8;
constexpr int kVectors = kLanes / kWidth;

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
void reduce_wide(const void* data, int64_t height, int64_t repeats, int64_t period, double* rows, double* columns) {
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

}  // namespace NIWAKI_ISA
}  // namespace niwaki

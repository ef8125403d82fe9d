// Sums of float32, float16 and bfloat16: at most eight terms are added in float32, as a tree or a short chain, and what
// comes of them in double. Sixteen lanes, whatever the width, so that each build adds in the same order. What float32
// cannot hold (an overflow, squares so small that they vanish) shows in the sum, which is then made again in double.
// Included by loops_impl.h, once for each instruction set.
namespace niwaki {
namespace NIWAKI_ISA {

constexpr int kSixteen = 16;
constexpr int kSingles = 2 * kWidth;                // floats in a vector
constexpr int kRegisters = kSixteen / kSingles;     // vectors of floats in sixteen lanes
constexpr int kWides = kSixteen / kWidth;           // vectors of doubles in sixteen lanes
constexpr int64_t kStrip = 4 * kSixteen;            // columns that the rows' short chains reach over
constexpr double kLargest = 0x1.fffffffffffffp+1023;
constexpr double kVanishing = 0x1p-96;              // a mean square above it outweighs what the smallest squares lose

typedef float Singles __attribute__((vector_size(4 * kSingles), aligned(4), may_alias));
typedef int32_t Bits __attribute__((vector_size(4 * kSingles), aligned(4), may_alias));
typedef uint32_t Wholes __attribute__((vector_size(4 * kSingles), aligned(2), may_alias));

struct Sixteen {
  Singles v[kRegisters];
};

#if NIWAKI_WIDTH == 2
// Out of line: without an instruction for it the code is long, and trees hold it many times.
__attribute__((noinline)) void portable_halves(const uint16_t* x, Singles* out) {
  for (int j = 0; j < kSixteen; j += kWidth) {
    const Floats part = __builtin_convertvector(load<Element::f16>(x + j), Floats);
    std::memcpy(reinterpret_cast<char*>(out) + j * sizeof(float), &part, sizeof part);
  }
}
#endif

template <Element E>
NIWAKI_INLINE Sixteen load_sixteen(const typename Storage<E>::type* x) {
  Sixteen out;
  if constexpr (E == Element::f32) {
    each<kRegisters>([&](auto k) NIWAKI_LAMBDA { out.v[k] = *reinterpret_cast<const Singles*>(x + k * kSingles); });
    return out;
  } else if constexpr (E == Element::bf16) {
    each<kRegisters>([&](auto k) NIWAKI_LAMBDA {
      typedef uint16_t Halves __attribute__((vector_size(2 * kSingles), aligned(2), may_alias));
      const Wholes bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(x + k * kSingles), Wholes) << 16;
      out.v[k] = reinterpret_cast<Singles>(bits);
    });
    return out;
  } else {
#if NIWAKI_WIDTH == 8
    out.v[0] = reinterpret_cast<Singles>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))));
#elif NIWAKI_WIDTH == 4
    each<kRegisters>([&](auto k) NIWAKI_LAMBDA {
      out.v[k] = reinterpret_cast<Singles>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 8 * k))));
    });
#else
    portable_halves(x, out.v);
#endif
    return out;
  }
}

template <Reduce R>
NIWAKI_INLINE Singles narrow_lift(Singles x) {
  if constexpr (R == Reduce::squares) return x * x;
  return reinterpret_cast<Singles>(reinterpret_cast<Bits>(x) & 0x7fffffff);
}

// Magnitudes order as their bits do, and NaN above them all.
template <Reduce R, class Vector>
NIWAKI_INLINE Vector narrow_combine(Vector a, Vector b) {
  if constexpr (R == Reduce::maximum) {
    typedef decltype(a < b) Integers;
    const Integers x = reinterpret_cast<Integers>(a), y = reinterpret_cast<Integers>(b);
    return reinterpret_cast<Vector>(x > y ? x : y);
  } else {
    return a + b;
  }
}

template <Reduce R>
NIWAKI_INLINE Sixteen combine_all(const Sixteen& a, const Sixteen& b) {
  Sixteen out;
  each<kRegisters>([&](auto k) NIWAKI_LAMBDA { out.v[k] = narrow_combine<R>(a.v[k], b.v[k]); });
  return out;
}

template <Element E, Reduce R>
NIWAKI_INLINE Sixteen terms(const typename Storage<E>::type* x) {
  Sixteen out = load_sixteen<E>(x);
  each<kRegisters>([&](auto k) NIWAKI_LAMBDA { out.v[k] = narrow_lift<R>(out.v[k]); });
  return out;
}

// Thirty-two terms of bfloat16, those of even places and those of odd ones: a word's halves, with one operation or two.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the even place is the word's lower half");
template <Reduce R>
NIWAKI_INLINE void even_and_odd(const uint16_t* x, Sixteen& even, Sixteen& odd) {
  each<kRegisters>([&](auto k) NIWAKI_LAMBDA {
    const Wholes words = *reinterpret_cast<const Wholes*>(x + 2 * k * kSingles);
    even.v[k] = narrow_lift<R>(reinterpret_cast<Singles>(words << 16));
    odd.v[k] = narrow_lift<R>(reinterpret_cast<Singles>(words & 0xffff0000u));
  });
}

// The first `count` of sixteen terms, zeros after them, which add nothing. Reads past them where `end` allows it.
template <Element E, Reduce R>
NIWAKI_INLINE Sixteen some_terms(const typename Storage<E>::type* x, int64_t count, const typename Storage<E>::type* end) {
  typedef typename Storage<E>::type T;
  if (end - x >= kSixteen) {
    static const int32_t kMask[2 * kSixteen] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    Sixteen out = terms<E, R>(x);
    each<kRegisters>([&](auto k) NIWAKI_LAMBDA {
      const Bits mask = *reinterpret_cast<const Bits*>(kMask + kSixteen - count + k * kSingles);
      out.v[k] = reinterpret_cast<Singles>(reinterpret_cast<Bits>(out.v[k]) & mask);
    });
    return out;
  }
  T padded[kSixteen] = {};
  for (int64_t j = 0; j < count; ++j) padded[j] = x[j];
  return terms<E, R>(padded);
}

NIWAKI_INLINE Doubles low_half(Singles x) {
#if NIWAKI_WIDTH == 8
  return reinterpret_cast<Doubles>(_mm512_cvtps_pd(_mm512_castps512_ps256(reinterpret_cast<__m512>(x))));
#elif NIWAKI_WIDTH == 4
  return reinterpret_cast<Doubles>(_mm256_cvtps_pd(_mm256_castps256_ps128(reinterpret_cast<__m256>(x))));
#else
  return Doubles{x[0], x[1]};
#endif
}

NIWAKI_INLINE Doubles high_half(Singles x) {
#if NIWAKI_WIDTH == 8
  return reinterpret_cast<Doubles>(_mm512_cvtps_pd(_mm512_extractf32x8_ps(reinterpret_cast<__m512>(x), 1)));
#elif NIWAKI_WIDTH == 4
  return reinterpret_cast<Doubles>(_mm256_cvtps_pd(_mm256_extractf128_ps(reinterpret_cast<__m256>(x), 1)));
#else
  return Doubles{x[2], x[3]};
#endif
}

// Combines sixteen float32 lanes with as many doubles, in the elements' order.
template <Reduce R>
NIWAKI_INLINE void widen_into(Doubles* sums, const Sixteen& x) {
  each<kRegisters>([&](auto k) NIWAKI_LAMBDA {
    sums[2 * k] = combine<R>(sums[2 * k], low_half(x.v[k]));
    sums[2 * k + 1] = combine<R>(sums[2 * k + 1], high_half(x.v[k]));
  });
}

template <Reduce R, int Count>
NIWAKI_INLINE double fold_lanes(Doubles (&sums)[Count]) {
  if constexpr (Count > 1) {
    Doubles half[Count / 2];
    each<Count / 2>([&](auto k) NIWAKI_LAMBDA { half[k] = combine<R>(sums[k], sums[k + Count / 2]); });
    return fold_lanes<R>(half);
  }
  // Lanes by their numbers, in registers: rows are short.
  const Doubles all = sums[0];
#if NIWAKI_WIDTH == 8
  const double first = combine<R>(combine<R>(all[0], all[4]), combine<R>(all[2], all[6]));
  return combine<R>(first, combine<R>(combine<R>(all[1], all[5]), combine<R>(all[3], all[7])));
#elif NIWAKI_WIDTH == 4
  return combine<R>(combine<R>(all[0], all[2]), combine<R>(all[1], all[3]));
#else
  return combine<R>(all[0], all[1]);
#endif
}

// Eight rows' sums from eight lanes of each: rows[i] as fold_lanes gives them, where that pays with half the additions.
template <Reduce R, int Count>
NIWAKI_INLINE void fold_eight(Doubles (&sums)[8][Count], double* rows) {
#if NIWAKI_WIDTH == 8
  static_assert(Count == 1);
  const auto quarters = [&](int a, int b) NIWAKI_LAMBDA {  // lanes 0 to 3 with 4 to 7, of two rows
    const __m512d x = reinterpret_cast<__m512d>(sums[a][0]), y = reinterpret_cast<__m512d>(sums[b][0]);
    return combine<R>(
        reinterpret_cast<Doubles>(_mm512_shuffle_f64x2(x, y, 0x44)), reinterpret_cast<Doubles>(_mm512_shuffle_f64x2(x, y, 0xee)));
  };
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  const auto halves = [&](Doubles p, Doubles q) NIWAKI_LAMBDA {  // of four
    const __m512d x = reinterpret_cast<__m512d>(p), y = reinterpret_cast<__m512d>(q);
    return combine<R>(
        reinterpret_cast<Doubles>(_mm512_permutex2var_pd(x, low, y)), reinterpret_cast<Doubles>(_mm512_permutex2var_pd(x, high, y)));
  };
  const __m512d x = reinterpret_cast<__m512d>(halves(quarters(0, 4), quarters(2, 6)));
  const __m512d y = reinterpret_cast<__m512d>(halves(quarters(1, 5), quarters(3, 7)));
  *reinterpret_cast<Doubles*>(rows) = combine<R>(
      reinterpret_cast<Doubles>(_mm512_unpacklo_pd(x, y)), reinterpret_cast<Doubles>(_mm512_unpackhi_pd(x, y)));
#else
  each<8>([&](auto r) NIWAKI_LAMBDA { rows[r] = fold_lanes<R>(sums[r]); });
#endif
}

// Whether a sum of `count` terms says that float32 was too narrow for some of them.
template <Reduce R>
NIWAKI_INLINE bool too_narrow(double sum, double count) {
  if constexpr (R == Reduce::maximum) return false;
  if constexpr (R == Reduce::squares) return !(sum <= kLargest && sum >= count * kVanishing);
  return !(sum <= kLargest);
}

// N times sixteen terms: a tree of additions.
template <Element E, Reduce R, int N>
NIWAKI_INLINE Sixteen tree(const typename Storage<E>::type* x) {
  if constexpr (N == 1) {
    return terms<E, R>(x);
  } else if constexpr (N == 2 && E == Element::bf16) {
    Sixteen even, odd;
    even_and_odd<R>(x, even, odd);
    return combine_all<R>(even, odd);
  } else {
    const Sixteen first = tree<E, R, N / 2>(x);
    return combine_all<R>(first, tree<E, R, N / 2>(x + N / 2 * kSixteen));
  }
}

// Asks for `Bytes` of the memory that comes `ahead` bytes later: the processor's own prefetching stops where a page ends.
constexpr int64_t kAhead = 2048;
template <int Bytes>
NIWAKI_INLINE void ask_for(const void* x, int64_t ahead) {
  each<Bytes / 64>([&](auto k) NIWAKI_LAMBDA { __builtin_prefetch(static_cast<const char*>(x) + ahead + 64 * k); });
}

template <Element E, Reduce R>
__attribute__((noinline)) void wide_rows(const typename Storage<E>::type* x, int64_t height, int64_t width, double* rows) {
  rows_only<E, R>(x, height, width, rows);
}

// Eight lanes of sums of one row.
template <Element E, Reduce R>
NIWAKI_INLINE void narrow_row(
    const typename Storage<E>::type* x, int64_t width, const typename Storage<E>::type* end, Doubles (&out)[kWides / 2]) {
  Doubles sums[kWides];
  each<kWides>([&](auto k) NIWAKI_LAMBDA { sums[k] = Doubles{}; });
  int64_t j = 0;
  for (; j + 8 * kSixteen <= width; j += 8 * kSixteen) {
    ask_for<8 * kSixteen * sizeof *x>(x + j, kAhead);
    widen_into<R>(sums, tree<E, R, 8>(x + j));
  }
  if (j + 4 * kSixteen <= width) {
    ask_for<4 * kSixteen * sizeof *x>(x + j, kAhead);
    widen_into<R>(sums, tree<E, R, 4>(x + j));
    j += 4 * kSixteen;
  }
  if (j + 2 * kSixteen <= width) widen_into<R>(sums, tree<E, R, 2>(x + j)), j += 2 * kSixteen;
  if (j + kSixteen <= width) widen_into<R>(sums, terms<E, R>(x + j)), j += kSixteen;
  if (j < width) widen_into<R>(sums, some_terms<E, R>(x + j, width - j, end));
  each<kWides / 2>([&](auto k) NIWAKI_LAMBDA { out[k] = combine<R>(sums[k], sums[k + kWides / 2]); });
}

// Makes those sums again that float32 was too narrow for.
template <Element E, Reduce R>
NIWAKI_INLINE void mend_rows(const typename Storage<E>::type* x, int64_t height, int64_t width, double* rows) {
  bool again = false;
  for (int64_t r = 0; r < height; ++r) again |= too_narrow<R>(rows[r], static_cast<double>(width));
  if (__builtin_expect(!again, 1)) return;
  for (int64_t r = 0; r < height; ++r) {
    if (too_narrow<R>(rows[r], static_cast<double>(width))) wide_rows<E, R>(x + r * width, 1, width, rows + r);
  }
}

template <Element E, Reduce R>
NIWAKI_INLINE void narrow_rows(const typename Storage<E>::type* x, int64_t height, int64_t width, double* rows) {
  const auto* end = x + height * width;
  int64_t r = 0;
  for (; r + 8 <= height; r += 8) {
    Doubles sums[8][kWides / 2];
    for (int i = 0; i < 8; ++i) narrow_row<E, R>(x + (r + i) * width, width, end, sums[i]);
    fold_eight<R>(sums, rows + r);
  }
  for (; r < height; ++r) {
    Doubles sums[kWides / 2];
    narrow_row<E, R>(x + r * width, width, end, sums);
    rows[r] = fold_lanes<R>(sums);
  }
  mend_rows<E, R>(x, height, width, rows);
}

}  // namespace NIWAKI_ISA
}  // namespace niwaki

// Sums of columns, and of rows with them, in float32 strips: see narrow.h. Eight rows of a column are a tree; a row's
// chain reaches over four times sixteen columns. Of bfloat16, 32 adjoining columns are taken as the sixteen even ones and
// the sixteen odd ones: a row adds them in pairs, and `columns` holds them apart until all rows are in.
namespace niwaki {
namespace NIWAKI_ISA {

// Half of sixteen lanes.
#if NIWAKI_WIDTH == 8
typedef float Halved __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int kHalves = 1;
#else
typedef Singles Halved;
constexpr int kHalves = kRegisters / 2;
#endif
struct Eight {
  Halved v[kHalves];
};

// The sixteen lanes as eight sums of two: lanes 0 to 7 with 8 to 15.
template <Reduce R>
NIWAKI_INLINE Eight halved(const Sixteen& x) {
  Eight out;
#if NIWAKI_WIDTH == 8
  const __m512 all = reinterpret_cast<__m512>(x.v[0]);
  out.v[0] = narrow_combine<R>(
      reinterpret_cast<Halved>(_mm512_castps512_ps256(all)), reinterpret_cast<Halved>(_mm512_extractf32x8_ps(all, 1)));
#else
  each<kHalves>([&](auto k) NIWAKI_LAMBDA { out.v[k] = narrow_combine<R>(x.v[k], x.v[k + kHalves]); });
#endif
  return out;
}

template <Reduce R>
NIWAKI_INLINE void chain(Eight& sum, const Eight& x) {
  each<kHalves>([&](auto k) NIWAKI_LAMBDA { sum.v[k] = narrow_combine<R>(sum.v[k], x.v[k]); });
}

template <Reduce R>
NIWAKI_INLINE void widen_eight_into(Doubles* sums, const Eight& x) {
#if NIWAKI_WIDTH == 8
  sums[0] = combine<R>(sums[0], reinterpret_cast<Doubles>(_mm512_cvtps_pd(reinterpret_cast<__m256>(x.v[0]))));
#else
  each<kHalves>([&](auto k) NIWAKI_LAMBDA {
    sums[2 * k] = combine<R>(sums[2 * k], low_half(x.v[k]));
    sums[2 * k + 1] = combine<R>(sums[2 * k + 1], high_half(x.v[k]));
  });
#endif
}

constexpr int64_t kAheadOfEight = 1024;  // bytes, in each of eight rows

// Four rows of one strip of columns: `strip` gets the columns' sums, or what they come to with it goes into `columns`.
template <Element E, Reduce R, bool Second, bool WithRows>
NIWAKI_INLINE void four_rows(
    const typename Storage<E>::type* x, const typename Storage<E>::type* end, int64_t stride, int64_t count, Sixteen* strip,
    Doubles (*rows)[kVectors], Doubles* columns) {
  Eight chains[4];
  each<4 * kHalves>([&](auto k) NIWAKI_LAMBDA { chains[k / kHalves].v[k % kHalves] = Halved{}; });
  int64_t j = 0;
  if constexpr (E == Element::bf16) {
    Sixteen pairs[4];
    each<4 * kRegisters>([&](auto k) NIWAKI_LAMBDA { pairs[k / kRegisters].v[k % kRegisters] = Singles{}; });
    for (; j + 2 * kSixteen <= count; j += 2 * kSixteen) {
      const auto next = [&](auto r, Sixteen& even, Sixteen& odd) NIWAKI_LAMBDA {
        even_and_odd<R>(x + r * stride + j, even, odd);
        ask_for<2 * kSixteen * sizeof *x>(x + r * stride + j, kAheadOfEight);
        if constexpr (WithRows) pairs[r] = combine_all<R>(pairs[r], combine_all<R>(even, odd));
      };
      Sixteen even[2], odd[2];
      each<2>([&](auto half) NIWAKI_LAMBDA {
        Sixteen another_even, another_odd;
        next(std::integral_constant<int, 2 * half>{}, even[half], odd[half]);
        next(std::integral_constant<int, 2 * half + 1>{}, another_even, another_odd);
        even[half] = combine_all<R>(even[half], another_even);
        odd[half] = combine_all<R>(odd[half], another_odd);
      });
      even[0] = combine_all<R>(even[0], even[1]), odd[0] = combine_all<R>(odd[0], odd[1]);
      if constexpr (Second) {
        widen_into<R>(columns + j / kWidth, combine_all<R>(strip[j / kSixteen], even[0]));
        widen_into<R>(columns + (j + kSixteen) / kWidth, combine_all<R>(strip[j / kSixteen + 1], odd[0]));
      } else {
        strip[j / kSixteen] = even[0], strip[j / kSixteen + 1] = odd[0];
      }
    }
    if constexpr (WithRows) {
      each<4>([&](auto r) NIWAKI_LAMBDA { chains[r] = halved<R>(pairs[r]); });
    }
  }
  for (; j < count; j += kSixteen) {
    const auto next = [&](auto r) NIWAKI_LAMBDA -> Sixteen {
      const auto* from = x + r * stride + j;
      ask_for<kSixteen * sizeof *x>(from, kAheadOfEight);
      const Sixteen term = __builtin_expect(count - j < kSixteen, 0) ? some_terms<E, R>(from, count - j, end) : terms<E, R>(from);
      if constexpr (WithRows) chain<R>(chains[r], halved<R>(term));
      return term;
    };
    Sixteen sum = next(std::integral_constant<int, 0>{});
    sum = combine_all<R>(sum, next(std::integral_constant<int, 1>{}));
    Sixteen other = next(std::integral_constant<int, 2>{});
    other = combine_all<R>(other, next(std::integral_constant<int, 3>{}));
    sum = combine_all<R>(sum, other);
    if constexpr (Second) {
      widen_into<R>(columns + j / kWidth, combine_all<R>(strip[j / kSixteen], sum));
    } else {
      strip[j / kSixteen] = sum;
    }
  }
  if constexpr (WithRows) {
    each<4>([&](auto r) NIWAKI_LAMBDA { widen_eight_into<R>(rows[r], chains[r]); });
  }
}

template <Element E, Reduce R>
__attribute__((noinline)) void wide_columns(const typename Storage<E>::type* x, int64_t count, double* columns) {
  side_by_side<E, R, 1, false>(x, count, count, nullptr, columns);
}

// Sixteen even places and sixteen odd ones, in turns again.
NIWAKI_INLINE void bring_together(double* columns) {
  double apart[2 * kSixteen];
  std::memcpy(apart, columns, sizeof apart);
  for (int i = 0; i < kSixteen; ++i) columns[2 * i] = apart[i], columns[2 * i + 1] = apart[kSixteen + i];
}

template <Element E, Reduce R, bool WithRows>
NIWAKI_INLINE void narrow_columns(
    const typename Storage<E>::type* x, int64_t height, int64_t repeats, int64_t period, double* rows, double* columns) {
  const int64_t width = repeats * period;
  const auto* end = x + height * width;
  int64_t r = 0;
  for (; r + 8 <= height; r += 8) {
    Doubles sums[8][kVectors] = {};
    for (int64_t q = 0; q < repeats; ++q) {
      const auto* from = x + r * width + q * period;
      for (int64_t j = 0; j < period; j += kStrip) {
        Sixteen strip[4];
        Doubles* into = reinterpret_cast<Doubles*>(columns + j);
        const int64_t count = period - j < kStrip ? period - j : kStrip;
        four_rows<E, R, false, WithRows>(from + j, end, width, count, strip, sums, into);
        four_rows<E, R, true, WithRows>(from + 4 * width + j, end, width, count, strip, sums + 4, into);
      }
    }
    if constexpr (WithRows) fold_eight<R>(sums, rows + r);
  }
  if constexpr (E == Element::bf16) {
    for (int64_t j = 0; j + 2 * kSixteen <= period; j += 2 * kSixteen) bring_together(columns + j);
  }
  for (; r < height; ++r) {
    if constexpr (WithRows) narrow_rows<E, R>(x + r * width, 1, width, rows + r);
    for (int64_t q = 0; q < repeats; ++q) {
      const auto* from = x + r * width + q * period;
      for (int64_t j = 0; j < period; j += kSixteen) {
        Doubles* into = reinterpret_cast<Doubles*>(columns + j);
        widen_into<R>(into, period - j < kSixteen ? some_terms<E, R>(from + j, period - j, end) : terms<E, R>(from + j));
      }
    }
  }
  const auto count = static_cast<double>(height * repeats);
  for (int64_t j = 0; j < period; j += kSixteen) {
    const int64_t some = period - j < kSixteen ? period - j : kSixteen;
    bool again = false;
    for (int64_t i = j; i < j + some; ++i) again |= too_narrow<R>(columns[i], count);
    if (__builtin_expect(again, 0)) {
      std::memset(columns + j, 0, some * sizeof(double));
      for (int64_t i = 0; i < height * repeats; ++i) wide_columns<E, R>(x + i * period + j, some, columns + j);
    }
  }
  if constexpr (WithRows) mend_rows<E, R>(x, height, width, rows);
}

}  // namespace NIWAKI_ISA
}  // namespace niwaki

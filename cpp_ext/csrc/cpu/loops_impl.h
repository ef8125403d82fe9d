// The loops themselves. Each file that includes this sets NIWAKI_ISA (a namespace), NIWAKI_WIDTH (doubles in a vector)
// and NIWAKI_NAME (of the table). The parts read in the order in which they are included.
#include "loops.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define NIWAKI_INLINE inline __attribute__((always_inline))
#define NIWAKI_LAMBDA __attribute__((always_inline))

namespace niwaki {
namespace NIWAKI_ISA {

constexpr int kWidth = NIWAKI_WIDTH;

typedef double Doubles __attribute__((vector_size(8 * kWidth), aligned(8), may_alias));
typedef int64_t Longs __attribute__((vector_size(8 * kWidth), aligned(8), may_alias));
typedef float Floats __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef uint16_t Shorts __attribute__((vector_size(2 * kWidth), aligned(2), may_alias));

// Calls f(k) for k from 0 to N - 1, without a loop: arrays of vectors stay in registers.
template <class F, int... K>
NIWAKI_INLINE void each_of(const F& f, std::integer_sequence<int, K...>) {
  (f(std::integral_constant<int, K>{}), ...);
}
template <int N, class F>
NIWAKI_INLINE void each(const F& f) {
  each_of(f, std::make_integer_sequence<int, N>{});
}

}  // namespace NIWAKI_ISA
}  // namespace niwaki

#include "wide.h"
#include "narrow.h"
#include "narrow_columns.h"
#include "compress.h"

namespace niwaki {
namespace NIWAKI_ISA {

template <Element E, Reduce R>
void reduce(const void* data, int64_t height, int64_t repeats, int64_t period, double* rows, double* columns) {
  if constexpr (E == Element::f64) {
    reduce_wide<E, R>(data, height, repeats, period, rows, columns);
  } else {
    const auto* x = static_cast<const typename Storage<E>::type*>(data);
    if (columns == nullptr) {
      narrow_rows<E, R>(x, height, repeats * period, rows);
    } else if (rows != nullptr) {
      narrow_columns<E, R, true>(x, height, repeats, period, rows, columns);
    } else {
      narrow_columns<E, R, false>(x, height, repeats, period, nullptr, columns);
    }
  }
}

}  // namespace NIWAKI_ISA

#define NIWAKI_STRING(x) #x
#define NIWAKI_TEXT(x) NIWAKI_STRING(x)
#define NIWAKI_REDUCE(E) \
  {isa::reduce<Element::E, Reduce::sum>, isa::reduce<Element::E, Reduce::squares>, isa::reduce<Element::E, Reduce::maximum>}
namespace isa = NIWAKI_ISA;
extern const Loops NIWAKI_NAME = {
    NIWAKI_TEXT(NIWAKI_ISA),
    {NIWAKI_REDUCE(f32), NIWAKI_REDUCE(f64), NIWAKI_REDUCE(f16), NIWAKI_REDUCE(bf16)},
    isa::compress<uint16_t>,
    isa::compress<uint32_t>};

}  // namespace niwaki

// Keeps some of adjoining elements, by a bit for each. Included by loops_impl.h, once for each instruction set.
namespace niwaki {
namespace NIWAKI_ISA {

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
}  // namespace niwaki

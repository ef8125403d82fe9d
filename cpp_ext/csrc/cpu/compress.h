// Keeps some of adjoining elements, by a bit for each. Included by loops_impl.h, once for each instruction set.
namespace niwaki {
namespace NIWAKI_ISA {

#if NIWAKI_WIDTH == 8
template <class T>
void compress(void* to, const void* from, const void* next, const uint8_t* masks, int64_t count, int64_t) {
  const T* x = static_cast<const T*>(from);
  T* out = static_cast<T*>(to);
  constexpr int64_t kWriteAhead = 512 / sizeof(T);
  for (int64_t i = 0; i < count; i += 16) {
    __builtin_prefetch(static_cast<const T*>(next) + i);
    const __mmask16 there = count - i < 16 ? (1u << (count - i)) - 1 : 0xffff;
    uint16_t mask;
    std::memcpy(&mask, masks + i / 8, sizeof mask);
    const int kept = __builtin_popcount(mask);
    const __mmask16 some = (1u << kept) - 1;
    if constexpr (sizeof(T) == 2) {
      const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, x + i));
      _mm256_mask_storeu_epi16(out, some, _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(mask, words)));
    } else {
      const __m512i words = _mm512_maskz_loadu_epi32(there, x + i);
      _mm512_mask_storeu_epi32(out, some, _mm512_maskz_compress_epi32(mask, words));
    }
    __builtin_prefetch(out + kWriteAhead, 1);
    out += kept;
  }
}
#elif NIWAKI_WIDTH > 2
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
void compress(void* to, const void* from, const void* next, const uint8_t* masks, int64_t count, int64_t kept) {
  constexpr int64_t step = 16 / sizeof(T);
  const T* x = static_cast<const T*>(from);
  T* out = static_cast<T*>(to);
  T* const end = out + kept;
  int64_t i = 0;
  for (; i + step <= count && out + step <= end; i += step) {
    __builtin_prefetch(static_cast<const T*>(next) + i);
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
void compress(void* to, const void* from, const void*, const uint8_t* masks, int64_t, int64_t kept) {
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

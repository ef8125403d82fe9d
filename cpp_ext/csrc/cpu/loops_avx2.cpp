// The loops for AVX2 with F16C: whatever the compiler's options say, this file alone is compiled for them.
#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,popcnt")
#endif
#include <immintrin.h>
#define NIWAKI_ISA avx2
#define NIWAKI_WIDTH 4
#define NIWAKI_NAME kLoopsAvx2
#include "loops_impl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

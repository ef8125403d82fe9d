// The loops for AVX-512 (F, BW, DQ, VL): whatever the compiler's options say, this file alone is compiled for it.
#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c,popcnt"))), apply_to = function)
#else
// GCC 12 takes the undefined operand of its own intrinsics for a mistake, thousands of times.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c,popcnt")
#endif
#include <immintrin.h>
#define NIWAKI_ISA avx512
#define NIWAKI_WIDTH 8
#define NIWAKI_NAME kLoopsAvx512
#include "loops_impl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

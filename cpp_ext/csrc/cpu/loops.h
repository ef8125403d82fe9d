// The hot loops of the CPU kernels, compiled once for each instruction set and chosen when first called.
// Every build adds in the same order, without fused multiply-add: the result is the same bits.
#pragma once

#include <cstdint>

namespace niwaki {

enum class Element : int { f32, f64, f16, bf16 };
enum class Reduce : int { sum, squares, maximum };

// `height` adjoining rows of repeats * period elements. rows[r] = the reduction of row r; columns[c] is combined with
// the reduction over all rows and repeats at place c. Either may be null; there is room for sixteens of columns
// (kColumnRoom), which begin as zeros.
constexpr int64_t kColumnRoom = 16;
using ReduceRows = void (*)(
    const void* x, int64_t height, int64_t repeats, int64_t period, double* rows, double* columns);

// Writes the `count` elements of `from` that `masks` (a bit for each, from the lowest, in sixteens) keeps, `kept` in
// number. Asks for the memory of as many at `next`, which come later.
using Compress = void (*)(
    void* to, const void* from, const void* next, const uint8_t* masks, int64_t count, int64_t kept);

struct Loops {
  const char* name;
  ReduceRows reduce[4][3];  // [Element][Reduce]
  Compress compress2, compress4;
};

extern const Loops kLoopsPlain, kLoopsAvx2, kLoopsAvx512;

const Loops& loops();

}  // namespace niwaki

// niwaki::keep_largest_products on the CPU: the global threshold of |gradient * weight|, and what lies below it zeroed.
// Non-negative floats order as their bits do: a histogram of the upper bits finds the bucket, a selection the number.
#include "../select.h"

#include <cstring>

#include "work.h"

namespace niwaki {
namespace {

constexpr int64_t kPiece = 128 * 1024;  // elements
constexpr int64_t kRun = 1024;          // products that are made at once
constexpr int kShift = 19;              // the 12 upper bits of 31
constexpr size_t kBuckets = 1 << (31 - kShift);

struct Half { uint16_t bits; };
struct BFloat16 { uint16_t bits; };

float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
double wide(double x) { return x; }
float wide(float x) { return x; }
float wide(BFloat16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }
float wide(Half x) {
  const uint32_t bits = x.bits & 0x7fff;
  const uint32_t normal = (bits << 13) + (112u << 23) + (bits >= 0x7c00 ? 112u << 23 : 0);
  return bits < 0x0400 ? static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-24f : as_float(normal);
}

template <class T>
void products_of(const void* g, const void* w, int64_t at, int64_t count, uint32_t* out) {
  const T* a = static_cast<const T*>(g) + at;
  const T* b = static_cast<const T*>(w) + at;
  for (int64_t i = 0; i < count; ++i) {
    const float product = static_cast<float>(wide(a[i]) * wide(b[i]));
    uint32_t bits;
    std::memcpy(&bits, &product, sizeof bits);
    out[i] = bits & 0x7fffffff;
  }
}

using Products = void (*)(const void*, const void*, int64_t, int64_t, uint32_t*);

Products products_for(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return products_of<double>;
    case ScalarType::Half: return products_of<Half>;
    case ScalarType::BFloat16: return products_of<BFloat16>;
    default: return products_of<float>;
  }
}

template <class T>
void zero_below(T* x, const uint32_t* products, uint32_t threshold, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = products[i] >= threshold ? x[i] : T{0};
}

struct Piece {
  size_t tensor;
  int64_t begin, end;
};

Tensor keep_largest_products(
    const std::vector<Tensor>& gradients, const std::vector<Tensor>& weights, int64_t keep) {
  const int64_t total = check_products(gradients, weights, keep);
  std::vector<Piece> pieces;
  std::vector<int64_t> work;
  for (size_t k = 0; k < weights.size(); ++k) {
    for (int64_t begin = 0; begin < weights[k].numel(); begin += kPiece) {
      pieces.push_back({k, begin, std::min(begin + kPiece, static_cast<int64_t>(weights[k].numel()))});
      work.push_back(pieces.back().end - begin);
    }
  }
  // Calls run(products, count, place of the first) over a piece.
  const auto runs = [&](const Piece& piece, const auto& run) {
    const Products make = products_for(weights[piece.tensor].scalar_type());
    const void* g = gradients[piece.tensor].const_data_ptr();
    const void* w = weights[piece.tensor].const_data_ptr();
    uint32_t products[kRun];
    for (int64_t at = piece.begin; at < piece.end; at += kRun) {
      const int64_t count = std::min(kRun, piece.end - at);
      make(g, w, at, count, products);
      run(products, count, at);
    }
  };

  // Above every number when nothing is kept, 0 when everything is.
  uint32_t threshold = keep == 0 ? 0x80000000u : 0;
  if (keep > 0 && keep < total) {
    std::vector<std::vector<uint32_t>> counts(pieces.size());
    for_each_piece(work, kPiece, [&](int64_t k) {
      counts[k].assign(kBuckets, 0);
      uint32_t* bins = counts[k].data();
      runs(pieces[k], [bins](const uint32_t* products, int64_t count, int64_t) {
        for (int64_t i = 0; i < count; ++i) ++bins[products[i] >> kShift];
      });
    });
    int64_t above = 0, in_bucket = 0;
    size_t bucket = kBuckets;
    while (above + in_bucket < keep) {
      above += in_bucket;
      --bucket;
      in_bucket = 0;
      for (const auto& bins : counts) in_bucket += bins[bucket];
    }
    std::vector<int64_t> places(pieces.size() + 1, 0);
    for (size_t k = 0; k < pieces.size(); ++k) places[k + 1] = places[k] + counts[k][bucket];
    std::vector<uint32_t> candidates(in_bucket);
    for_each_piece(work, kPiece, [&](int64_t k) {
      if (places[k] == places[k + 1]) return;
      uint32_t* out = candidates.data() + places[k];
      runs(pieces[k], [&out, bucket](const uint32_t* products, int64_t count, int64_t) {
        for (int64_t i = 0; i < count; ++i) {
          if (products[i] >> kShift == bucket) *out++ = products[i];
        }
      });
    });
    const auto nth = candidates.begin() + (keep - above - 1);
    std::nth_element(candidates.begin(), nth, candidates.end(), std::greater<>());
    threshold = *nth;
  }
  if (threshold > 0) {
    for_each_piece(work, kPiece, [&](int64_t k) {
      const Tensor& g = gradients[pieces[k].tensor];
      runs(pieces[k], [&](const uint32_t* products, int64_t count, int64_t at) {
        char* x = static_cast<char*>(const_cast<void*>(g.const_data_ptr())) + at * g.element_size();
        switch (g.element_size()) {
          case 2: zero_below(reinterpret_cast<uint16_t*>(x), products, threshold, count); break;
          case 4: zero_below(reinterpret_cast<float*>(x), products, threshold, count); break;
          default: zero_below(reinterpret_cast<double*>(x), products, threshold, count);
        }
      });
    });
  }
  Tensor result = torch::stable::new_empty(weights[0], {}, ScalarType::Float);
  *static_cast<float*>(result.mutable_data_ptr()) =
      keep == 0 ? std::numeric_limits<float>::infinity() : as_float(threshold);
  return result;
}

}  // namespace
}  // namespace niwaki

STABLE_TORCH_LIBRARY_FRAGMENT(niwaki, m) {
  m.def("keep_largest_products(Tensor(a!)[] gradients, Tensor[] weights, int keep) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(niwaki, CPU, m) {
  m.impl("keep_largest_products", TORCH_BOX(&niwaki::keep_largest_products));
}

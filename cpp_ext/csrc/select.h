// What keep_largest_products shares on both devices: the checks that need no data.
#pragma once

#include "norms.h"

namespace niwaki {

// Returns how many products there are; `keep` of them are to stay.
inline int64_t check_products(const std::vector<Tensor>& gradients, const std::vector<Tensor>& weights, int64_t keep) {
  const char* op = "keep_largest_products";
  require(
      gradients.size() == weights.size() && !weights.empty(), op, " got ", gradients.size(), " gradients for ", weights.size(),
      " weights: pass one for each.");
  require_one_device(op, gradients);
  int64_t total = 0;
  for (size_t k = 0; k < weights.size(); ++k) {
    const Tensor &g = gradients[k], &w = weights[k];
    check_norm_dtype(op, w);
    bool like = g.scalar_type() == w.scalar_type() && g.dim() == w.dim() && g.is_cpu() == w.is_cpu() &&
        g.get_device_index() == w.get_device_index();
    for (int64_t d = 0; like && d < w.dim(); ++d) {
      like = g.size(d) == w.size(d) && (w.size(d) == 1 || g.stride(d) == w.stride(d));
    }
    bool dense;
    memory_order(w, dense);
    require(
        like && dense, op, " got a gradient ", k,
        " that is not of its weight's dtype, shape, device and dense memory layout.");
    total += w.numel();
  }
  require(keep >= 0 && keep <= total, op, " was to keep ", keep, " of ", total, " products.");
  return total;
}

}  // namespace niwaki
